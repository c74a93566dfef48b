"""The study's own way, two rounds of it, and what it is compared with."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studies.data_cleaning.problem import CLASSES, Problem
from studies.data_cleaning.softmax import sample_losses, solve
from studies.data_cleaning.weights import function_of_loss

__all__ = [
    "PENALTY",
    "Cleaned",
    "clean_alone",
    "cleaned",
    "cleaned_by_net",
    "net_losses",
    "net_of_clean",
    "on_weights",
    "with_clean",
]

PENALTY = 5.0  # times |theta|^2, beside the sum of losses: 1e-3 beside the mean over the 5,000 clean images


class Cleaned(NamedTuple):
    """What a round of cleaning came to.

    Attributes:
        seconds: CPU seconds since the start.
        weights: ``(n,)``. line: a and b of the function of the loss.
        alone: theta trained on the weighted samples. together: on these and the clean images.
    """

    seconds: float
    weights: Tensor
    line: tuple[float, float]
    alone: Tensor
    together: Tensor


def cleaned(problem: Problem, seed: int, rounds: int = 2) -> Iterator[Cleaned]:
    """Yield what each round came to: a reference model, the weights as a function of its losses, the models on them.

    The first reference is trained on the clean images alone, the next ones on these and the weighted samples.
    """
    since = time.process_time()
    reference = clean_alone(problem)
    line = (0.0, 1.0)
    for number in range(rounds):
        losses = sample_losses(reference, problem.train, problem.labels)
        epochs = 10 if number == 0 else 5
        weights, line = function_of_loss(problem, losses, reference, seed, line, epochs=epochs)
        yield (found := _trained(problem, weights, line, reference, since))
        reference = found.together


def cleaned_by_net(problem: Problem, seed: int, scaled: bool = True) -> Cleaned:
    """Return what the weights come to where the reference is a small net, trained on the clean images alone.

    Args:
        problem: the data.
        seed: of the net and of the minibatches.
        scaled: divide the weights by the largest, so that what is surely right counts as a clean image does. (A smaller
            a acts as a larger penalty, and may be what is learned.)
    """
    since = time.process_time()
    start = clean_alone(problem)
    weights, line = function_of_loss(problem, net_losses(problem, seed), start, seed)
    weights = weights / weights.max() if scaled else weights
    return _trained(problem, weights, line, start, since)


def _trained(problem: Problem, weights: Tensor, line: tuple[float, float], start: Tensor, since: float) -> Cleaned:
    alone = on_weights(problem, weights, start)
    together = with_clean(problem, weights, alone)
    return Cleaned(time.process_time() - since, weights, line, alone, together)


def clean_alone(problem: Problem) -> Tensor:
    """Return theta trained on the clean images alone."""
    return solve(problem.clean, problem.clean_labels, None, PENALTY / len(problem.clean))


def on_weights(problem: Problem, weights: Tensor, start: Tensor | None = None) -> Tensor:
    """Return theta trained on the weighted samples alone."""
    return solve(problem.train, problem.labels, weights, PENALTY / float(weights.sum()), start)


def with_clean(problem: Problem, weights: Tensor, start: Tensor | None = None) -> Tensor:
    """Return theta trained on the weighted samples and the clean images, under the same penalty."""
    both = torch.cat([problem.train, problem.clean]), torch.cat([problem.labels, problem.clean_labels])
    weights = torch.cat([weights, torch.ones(len(problem.clean))])
    return solve(*both, weights, PENALTY / float(weights.sum()), start)


def net_losses(problem: Problem, seed: int) -> Tensor:
    """Return the losses of the given labels ``(n,)`` under `net_of_clean`."""
    net = net_of_clean(problem, seed)
    with torch.no_grad():
        return F.cross_entropy(net(problem.train), problem.labels, reduction="none")


def net_of_clean(problem: Problem, seed: int) -> nn.Module:
    """Return a net with 128 hidden units, trained on the clean images.

    Adam, step 0.001, batches of 100, 15 epochs, weight decay 1e-4 and label smoothing 0.1, so that it is unsure of what
    it does not know.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(problem.clean.shape[1], 128), nn.ReLU(), nn.Linear(128, CLASSES))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-4)
    for _ in range(15):
        for rows in torch.randperm(len(problem.clean), generator=generator).split(100):
            optimizer.zero_grad()
            F.cross_entropy(net(problem.clean[rows]), problem.clean_labels[rows], label_smoothing=0.1).backward()
            optimizer.step()
    return net
