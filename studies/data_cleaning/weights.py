"""Ways to weights from the clean images, each by a single-loop solver of the package."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam

from steelyard.bilevel import Batch, WeightedLoss
from steelyard.reweight import SOBA, FeatureWeights, InnerRun, Maple, MeanRisk, SampleWeights, SingleLoopStep
from studies.data_cleaning.problem import CLASSES, Problem

__all__ = ["CROSS_ENTROPY", "SAMPLE", "function_of_loss", "l2_penalty", "learned", "maple_weights", "weight_a_sample"]

CROSS_ENTROPY = partial(F.cross_entropy, reduction="none")


def learned(
    problem: Problem,
    weights: nn.Module,
    *,
    l2: float,
    rate: float,
    outer_rate: float,
    batch_size: int,
    epochs: int,
    seed: int,
    start: Tensor | None = None,
) -> Tensor:
    """Return the weights ``(n,)`` after SOBA's epochs.

    Args:
        problem: its clean images make the outer risk.
        weights: from ids to weights; its parameters are moved.
        l2: of the inner problem, beside the mean of w_i l_i.
        rate: of the inner gradient descent and of the linear system; falls to 0 as a cosine.
        outer_rate: Adam's, of the weights; falls with it.
        batch_size: of both levels. epochs: over the training images.
        seed: of the minibatches.
        start: theta ``(785, 10)`` at first; None: 0.
    """
    train, clean = Batch.of(problem.train, problem.labels), Batch.of(problem.clean, problem.clean_labels)
    model = nn.Linear(train.inputs.shape[1], CLASSES, bias=False)
    with torch.no_grad():
        model.weight.zero_() if start is None else model.weight.copy_(start.T)
    optimizer = SGD(model.parameters(), lr=rate)
    objective = WeightedLoss(CROSS_ENTROPY, regulariser=partial(l2_penalty, l2=l2))
    solver = SOBA(model, optimizer, objective, clean, weights, outer_optimizer=partial(Adam, lr=outer_rate), seed=seed)
    total = epochs * -(-len(train) // batch_size)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(one, total) for one in (optimizer, solver.outer_optimizer)]

    def after(seen: SingleLoopStep) -> None:
        for schedule in schedules:
            schedule.step()

    return solver.fit(train, epochs=epochs, batch_size=batch_size, callbacks=[after]).weights


def weight_a_sample(problem: Problem, seed: int, **options: Any) -> Tensor:
    """Learn a weight for every image."""
    return learned(problem, SampleWeights(len(problem.train)), seed=seed, **SAMPLE | options)


def maple_weights(problem: Problem, seed: int, steps: int = 40, batch_size: int = 1000) -> Tensor:
    """Learn a weight for every image by MAPLE: warm starts of 20 steps, and the last step differentiated.

    Args:
        problem: its clean images make the outer risk.
        seed: of the minibatches.
        steps: outer ones.
        batch_size: of the inner steps.
    """
    inner = InnerRun(
        _untrained(problem.train.shape[1]),
        partial(Adam, lr=0.01),
        WeightedLoss(CROSS_ENTROPY, regulariser=partial(l2_penalty, l2=SAMPLE["l2"])),
        steps=20,
        batch_size=batch_size,
        restart=False,
        seed=seed,
    )
    maple = Maple(inner, MeanRisk(), learn="weights", steps=steps, weight_optimizer=partial(Adam, lr=0.1), seed=seed)
    clean = Batch.of(problem.clean, problem.clean_labels)
    return maple.fit(Batch.of(problem.train, problem.labels), clean).weights


def _untrained(inputs: int) -> Callable[[], nn.Module]:
    """Return what makes softmax regression at 0."""

    def made() -> nn.Module:
        model = nn.Linear(inputs, CLASSES, bias=False)
        nn.init.zeros_(model.weight)
        return model

    return made


def function_of_loss(
    problem: Problem,
    losses: Tensor,
    start: Tensor,
    seed: int,
    line: tuple[float, float] = (0.0, 1.0),
    **options: Any,
) -> tuple[Tensor, tuple[float, float]]:
    """Learn w_i = sigmoid(a - b loss_i), the loss that of a label under a reference model.

    With labels drawn uniformly for a share r, and a reference that gives true probabilities p, the chance that a label
    is right is p (1 - r) / (p (1 - r) + r / 10): a logistic function of log p, with b = 1 and a = log(10 (1 - r) / r).
    Nobody tells r, and a penalised model is less sure than it could be: a and b are learned.

    Args:
        problem: the data.
        losses: ``(n,)`` of the labels under the reference.
        start: theta ``(785, 10)``, where the inner problem starts.
        seed: of the minibatches.
        line: a and b at first.
        options: of `learned`.

    Returns:
        The weights ``(n,)``, and a and b.
    """
    net = nn.Linear(1, 1)
    with torch.no_grad():
        net.bias.fill_(line[0])
        net.weight.fill_(-line[1])
    weights = FeatureWeights(losses[:, None], net)
    found = learned(problem, weights, seed=seed, start=start, **_FUNCTION | options)
    return found, (net.bias.item(), -net.weight.item())


def l2_penalty(model: nn.Module, l2: float) -> Tensor:
    """Return l2 |theta|^2."""
    return l2 * torch.cat([p.flatten() for p in model.parameters()]).square().sum()


SAMPLE = {"l2": 1e-3, "rate": 1.0, "outer_rate": 0.3, "batch_size": 500, "epochs": 20}
_FUNCTION = {"l2": 1e-3, "rate": 0.05, "outer_rate": 0.05, "batch_size": 500, "epochs": 10}
