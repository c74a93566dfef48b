"""Proxies: short, independent runs of the problem's model, trained together, and the scores that are made of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steelyard import selectors
from steelyard._support import _check
from steelyard.experiments.priors._term import Term, adam
from steelyard.experiments.training.problem import Problem
from steelyard.experiments.training.trainer import Training

__all__ = ["EnsembleTerm", "sample_losses", "train_ensemble"]


@dataclass(frozen=True)
class EnsembleTerm(Term):
    """A score made of proxies' outputs. Terms with the same `models` and `training` share one ensemble.

    Attributes:
        models: number of proxies.
        training: of each proxy.
    """

    fewest: ClassVar[int] = 1
    models: int = 10
    training: Training = field(default_factory=lambda: adam(20))

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.integer("models", self.models, low=self.fewest)

    def scores(self, problem: Problem) -> Float[Tensor, " n"]:
        """Return the scores ``(n,)`` by an ensemble of its own."""
        return self.of(problem, train_ensemble(problem, self.models, self.training))

    def of(self, problem: Problem, ensemble: selectors.Ensemble) -> Float[Tensor, " n"]:
        """Return the scores ``(n,)`` by trained proxies."""
        raise NotImplementedError


def train_ensemble(problem: Problem, models: int, training: Training) -> selectors.Ensemble:
    """Train `models` proxies of `problem` at once, each with its own initial parameters and order of the batches.

    Seeds are drawn from the problem's own. With ``training.batch_size = 0`` every step takes all samples and the
    initial parameters alone tell the proxies apart. (`evaluate_every` has no meaning here.)
    """
    generator = torch.Generator().manual_seed(problem.seed)
    seeds = torch.randint(2**31, (models,), generator=generator).tolist()
    ensemble = selectors.Ensemble([replace(problem, seed=seed).model() for seed in seeds])
    leaves = ensemble.parameters()
    parameters = [nn.Parameter(leaf.detach()) for leaf in leaves]  # the same memory, as the type that `build` asks for
    optimizer = training.optimizer.build(parameters)
    data = problem.splits.train
    whole = not 0 < training.batch_size < len(data)
    positions = _positions(len(data), training.batch_size, models, generator)
    for _ in range(training.steps):
        if whole:
            losses = sample_losses(problem, ensemble(data.inputs), data.targets.expand(models, -1))
        else:
            batch = next(positions).to(data.index.device)  # (models, b)
            losses = sample_losses(problem, ensemble(data.inputs[batch], shared=False), data.targets[batch])
        loss = losses.mean(1).sum()  # each member's gradient is that of its own mean
        if training.l2:
            loss = loss + training.l2 * sum(leaf.square().sum() for leaf in leaves)
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, leaves), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return ensemble


def _positions(count: int, size: int, models: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield positions ``(models, b)`` for ever, shuffled by epoch; an epoch's incomplete last batch is left out."""
    while True:
        order = torch.stack([torch.randperm(count, generator=generator) for _ in range(models)])
        yield from order[:, : count - count % size].split(size, dim=1)


def sample_losses(problem: Problem, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return losses ``(models, b)`` of outputs ``(models, b, width)`` and targets ``(models, b)``."""
    return problem.loss(outputs.flatten(0, 1), targets.flatten()).view(targets.shape)
