"""The one trainer: minimises a weighted mean loss (the rule), plus a penalty (the risk), plus L2.

A method is a choice of these; see `steelyard.experiments.methods`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steelyard import _check
from steelyard.bilevel.batch import Batch
from steelyard.experiments.problem import Observer, Problem
from steelyard.reweight import Risk

__all__ = ["Anneal", "OptimizerSettings", "Rule", "Training", "train", "uniform"]

Rule: TypeAlias = Callable[[Tensor, Batch], Tensor]
"""``(losses (b,), batch) -> (b,)`` sample weights, from losses that carry no gradient."""


def uniform(losses: Float[Tensor, " b"], batch: Batch) -> Float[Tensor, " b"]:
    """The rule of ERM: every sample weighs the same."""
    return torch.ones_like(losses)


@dataclass(frozen=True)
class OptimizerSettings:
    """Which torch optimizer, and its settings."""

    name: Literal["sgd", "adam"] = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.0  # SGD only
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check.in_range("learning_rate", self.learning_rate, low=0.0, open_low=True)
        _check.in_range("momentum", self.momentum, low=0.0, high=1.0, open_high=True)
        _check.in_range("weight_decay", self.weight_decay, low=0.0)
        if self.name != "sgd" and self.momentum:
            raise ValueError(f"momentum is a setting of 'sgd', the optimizer is {self.name!r}")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimizer over `parameters`."""
        if self.name == "sgd":
            return torch.optim.SGD(
                parameters, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
            )
        return torch.optim.Adam(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class Training:
    """How long and how a model is trained.

    Attributes:
        steps: optimizer steps.
        batch_size: samples a step, drawn without replacement and reshuffled each epoch; 0 takes all of them.
        l2: the coefficient of the sum of squares of all parameters in the loss.
        evaluate_every: steps between two evaluations; the last step is always evaluated.
        optimizer: the optimizer.
    """

    steps: int = 300
    batch_size: int = 0
    l2: float = 0.0
    evaluate_every: int = 10
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)

    def __post_init__(self) -> None:
        _check.integer("steps", self.steps, low=1)
        _check.integer("batch_size", self.batch_size, low=0)
        _check.integer("evaluate_every", self.evaluate_every, low=1)
        _check.in_range("l2", self.l2, low=0.0)


@dataclass(frozen=True)
class Anneal:
    """The penalty's weight over the steps: `before` until `at` steps are done, `weight` from then on.

    The whole loss is divided by the weight once this is above 1, so that gradients keep their size (as in the
    published code of IRMv1 and V-REx).
    """

    weight: float = 1e4
    before: float = 1.0
    at: int = 100

    def __post_init__(self) -> None:
        _check.in_range("weight", self.weight, low=0.0)
        _check.in_range("before", self.before, low=0.0)
        _check.integer("at", self.at, low=0)

    def __call__(self, step: int) -> float:
        """Return the weight at `step`, counted from 0."""
        return self.before if step < self.at else self.weight


def train(
    problem: Problem,
    settings: Training,
    observe: Observer,
    *,
    rule: Rule = uniform,
    penalty: Risk | None = None,
    anneal: Anneal | None = None,
) -> nn.Module:
    """Train a new model of `problem` and return it.

    The loss of a step is ``(sum w_i l_i / sum w_i + l2 ||theta||^2 + lambda penalty) / max(1, lambda)``, with
    w = rule(losses, batch) and lambda = anneal(step).

    Args:
        problem: data, model and seed.
        settings: steps, batches, optimizer.
        observe: called after each evaluated step.
        rule: the sample weights.
        penalty: a risk added to the weighted mean loss.
        anneal: the penalty's weight; required with a penalty.
    """
    if (penalty is None) != (anneal is None):
        raise ValueError("penalty and anneal come together: a penalty needs its weight")
    model = problem.model()
    optimizer = settings.optimizer.build(model.parameters())
    batches = _batches(problem.splits.train, settings.batch_size, problem.seed)
    for step in range(settings.steps):
        batch = next(batches)
        outputs = model(batch.inputs)
        losses = problem.loss(outputs, batch.targets)
        weight = rule(losses.detach(), batch)
        loss = (weight * losses).sum() / weight.sum()
        if settings.l2:
            loss = loss + settings.l2 * sum((p.square().sum() for p in model.parameters()), torch.zeros(()))
        if penalty is not None and anneal is not None:
            strength = anneal(step)
            loss = (loss + strength * penalty(outputs, batch, problem.loss)) / max(1.0, strength)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done = step + 1
        if done % settings.evaluate_every == 0 or done == settings.steps:
            observe(done, model, {"loss": float(loss.detach())})
    return model


def _batches(data: Batch, size: int, seed: int) -> Iterator[Batch]:
    """Yield batches for ever: all of `data` for size 0 (or one as large), else shuffled by epoch."""
    if size == 0 or size >= len(data):
        while True:
            yield data
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(data), generator=generator).to(data.index.device)
        for start in range(0, len(data) - size + 1, size):  # an epoch's incomplete last batch is left out
            yield data.take(order[start : start + size])
