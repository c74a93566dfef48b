"""The truth: the window trained again under other weights, by code that shares nothing with the library."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from tests.bilevel.zoo.case import SAMPLES, Case, cast, seeded

__all__ = ["OPTIMIZERS", "Setting", "Start", "Truth", "batches", "outer", "prepared", "relative", "restore"]

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, float]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "adam": (torch.optim.Adam, {"lr": 0.02}),
    "adam, larger eps": (torch.optim.Adam, {"lr": 0.02, "eps": 0.1}),
}
WARMUP = 2


@dataclass(frozen=True)
class Setting:
    """How a case is trained.

    Attributes:
        optimizer: a key of `OPTIMIZERS`.
        steps: T.
        normalise: of the weighted loss.
    """

    optimizer: str = "sgd"
    steps: int = 1
    normalise: str = "none"


@dataclass
class Start:
    """Everything before the window: parameters, buffers and the optimizer's state, representable in float32."""

    parameters: list[Tensor]
    buffers: list[Tensor]
    state: list[dict[str, Any]]


def optimizer_of(model: nn.Module, kind: str) -> torch.optim.Optimizer:
    make, options = OPTIMIZERS[kind]
    trained = [p for p in model.parameters() if p.requires_grad]
    return make(trained, **options)  # type: ignore[arg-type]


def prepared(case: Case, kind: str) -> Start:
    """Train for a few steps and round: the optimizer is warm, and both precisions can start at the same point."""
    model = case.build(torch.float64)
    optimizer = optimizer_of(model, kind)
    weight = torch.ones(SAMPLES, dtype=torch.float64)
    with seeded(case.name, "warm-up"):
        for inputs, targets, rows in batches(case, WARMUP, torch.float64):
            _step(case, model, optimizer, inputs, targets, weight[rows], "batch")
    return Start(
        [_rounded(p.detach()) for p in model.parameters()],
        [_rounded(b) for b in model.buffers()],
        [{k: _rounded(v) for k, v in optimizer.state.get(p, {}).items()} for p in model.parameters()],
    )


def restore(start: Start, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put model and optimizer back to where the window starts, in the precision of the model."""
    with torch.no_grad():
        for p, value in zip(model.parameters(), start.parameters, strict=True):
            p.data.copy_(value)
            p.grad = None
        for b, value in zip(model.buffers(), start.buffers, strict=True):
            b.copy_(value)
    optimizer.state.clear()
    for p, state in zip(model.parameters(), start.state, strict=True):
        if state:
            optimizer.state[p] = {k: _like(v, p) for k, v in state.items()}
    model.train()


def batches(case: Case, steps: int, dtype: torch.dtype, others: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield inputs, targets and rows of every step: all samples, in another order each time; then the others."""
    inputs, targets = case.data(dtype, others)
    for number in range(steps):
        rows = torch.cat([torch.arange(SAMPLES).roll(number), torch.arange(SAMPLES, SAMPLES + others)])
        yield inputs[rows], targets[rows], rows


def _step(
    case: Case,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    weight: Tensor,
    normalise: str,
    nudges: Sequence[Tensor] = (),
) -> None:
    """Train one step. `nudges`, ``(batch, *shape)`` a parameter, are added to the samples' gradients."""
    losses = case.loss(model(inputs), targets)
    for nudge, p in zip(nudges, model.parameters(), strict=bool(nudges)):
        losses = losses + (nudge * p).real.reshape(len(losses), -1).sum(1)
    loss = (weight * losses).sum()
    if normalise != "none":
        loss = loss / (weight.sum() if normalise == "weights" else len(weight))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def outer(case: Case, dtype: torch.dtype) -> Any:
    """Return the outer loss: smooth in the parameters, and in eval mode in the outputs for other samples."""
    inputs, _ = case.draw("outer", dtype)

    def function(model: nn.Module) -> Tensor:
        total = sum((torch.sin(_real(p) + 0.3).sum() for p in model.parameters()), torch.zeros((), dtype=dtype)) * 0.3
        if case.predicts:
            model.eval()
            with seeded(case.name, "outer"):
                outputs = model(inputs)
            total = total + torch.sin(outputs + torch.arange(outputs.numel()).view_as(outputs)).sum()
        return total

    return function


class Truth:
    """Central differences of `outer` in the weight of each sample; those beyond the first `SAMPLES` are others.

    (An other has weight 0: what its weight would do, had it been a row of the batch.)
    """

    def __init__(self, case: Case, start: Start, setting: Setting, weight: Tensor) -> None:
        self.case, self.start, self.setting, self.weight = case, start, setting, weight.double()
        self.model = case.build(torch.float64)
        self.optimizer = optimizer_of(self.model, setting.optimizer)
        self.outer = outer(case, torch.float64)
        self.batches = list(batches(case, setting.steps, torch.float64, len(weight) - SAMPLES))
        self.nudges: list[Tensor] = []

    def value(self, weight: Tensor) -> float:
        """Train the window under `weight` and return the outer loss."""
        restore(self.start, self.model, self.optimizer)
        with seeded(self.case.name, "window"):
            for inputs, targets, rows in self.batches:
                nudges = [nudge[rows] for nudge in self.nudges]
                normalise = self.setting.normalise
                _step(self.case, self.model, self.optimizer, inputs, targets, weight[rows], normalise, nudges)
        found = float(self.outer(self.model).detach())
        assert math.isfinite(found), f"{self.case.name} diverges: it has no derivative to be compared with"
        return found

    def differences(self, h: float, points: int = 2) -> Tensor:
        """Central differences with 2 points, or with 4 (the error is then of the order h^4)."""
        found = []
        for i in range(len(self.weight)):
            unit = torch.zeros_like(self.weight)
            unit[i] = h
            slope = self.value(self.weight + unit) - self.value(self.weight - unit)
            if points == 4:
                wide = self.value(self.weight + 2 * unit) - self.value(self.weight - 2 * unit)
                found.append((8 * slope - wide) / (12 * h))
            else:
                found.append(slope / (2 * h))
        return torch.tensor(found, dtype=torch.float64)

    def best(self) -> tuple[Tensor, float]:
        """Return the four-point differences of the two lengths that agree best, and by how much they differ."""
        found = [self.differences(h, 4) for h in (1e-4, 1e-5)]
        if relative(*found) > 1e-7:
            found.insert(0, self.differences(1e-3, 4))
        pairs = [(relative(a, b), b) for a, b in pairwise(found)]
        error, value = min(pairs, key=lambda pair: pair[0])
        return value, error

    @cached_property
    def conditioning(self) -> float:
        """Return by how much the truth moves if each sample's gradient is off by what float32 rounds away.

        Where Adam divides a gradient that is nothing but rounding by its eps, that is a lot.
        """
        plain = self.differences(1e-4)
        self.value(self.weight)
        size = max(float(p.grad.abs().max()) for p in self.model.parameters() if p.grad is not None)
        generator = torch.Generator().manual_seed(0)
        for p in self.model.parameters():
            noise = torch.randn(len(self.weight), *p.shape, generator=generator, dtype=p.dtype)
            self.nudges.append(noise * size * torch.finfo(torch.float32).eps)
        moved = self.differences(1e-4)
        self.nudges = []
        return relative(moved, plain)


def relative(found: Tensor, right: Tensor) -> float:
    """Return the largest difference over the largest entry of `right`; NaN counts as infinite."""
    scale = float(right.abs().max())
    error = float((found.double() - right.double()).abs().max())
    if error != error:
        return float("inf")
    return error / scale if scale else (0.0 if error == 0 else float("inf"))


def _rounded(value: Any) -> Any:
    """Return a copy that float32 can hold."""
    if not isinstance(value, Tensor):
        return copy.copy(value)
    return cast(cast(value.detach().clone(), torch.float32), torch.float64)


def _like(value: Any, p: Tensor) -> Any:
    """Return a copy of an entry of the optimizer's state, in the precision of its parameter (but not its counter)."""
    if not isinstance(value, Tensor):
        return value
    if value.ndim == 0 and p.ndim:
        return value.to(torch.float32, copy=True)
    return value.to(p.dtype, copy=True)


def _real(p: Tensor) -> Tensor:
    return torch.view_as_real(p) if p.is_complex() else p
