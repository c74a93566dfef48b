"""Measure a model on the three splits, with the test split's figures kept apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from steelyard import reweight
from steelyard.bilevel.batch import Batch
from steelyard.experiments.problem import Problem

__all__ = ["Evaluation", "SplitMetrics", "Visible", "evaluate", "finite_json", "measure", "number"]


@dataclass(frozen=True)
class SplitMetrics:
    """A model's figures on one split.

    Attributes:
        accuracy: share of right predictions.
        loss: mean loss, nats.
        environment_accuracy: accuracy in each environment; empty where environments are not known.
        environment_loss: mean loss in each environment, nats; likewise.
        irmv1: the IRMv1 penalty; None where there are no two environments to compare.
        vrex: the V-REx penalty; likewise.
    """

    accuracy: float
    loss: float
    environment_accuracy: tuple[float, ...] = ()
    environment_loss: tuple[float, ...] = ()
    irmv1: float | None = None
    vrex: float | None = None

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> SplitMetrics:
        """Return the metrics in one split's part of a line of metrics.jsonl; null stands for NaN.

        Raises:
            TypeError, ValueError: a field that is missing, unknown, or not a number.
        """
        values: dict[str, Any] = {
            name: tuple(map(number, value)) if isinstance(value, list) else number(value)
            for name, value in table.items()
        }
        if len(values.get("environment_loss", ())) < 2:  # no penalty, where else null is NaN
            values = {name: value for name, value in values.items() if name not in ("irmv1", "vrex")}
        return cls(**values)

    @property
    def finite(self) -> bool:
        """Whether the mean loss is a finite number; it is not once training has diverged."""
        return math.isfinite(self.loss)


def number(value: Any) -> float:
    """Return a number of metrics.jsonl, NaN for null (JSON has no NaN)."""
    if isinstance(value, bool) or not (value is None or isinstance(value, (int, float))):
        raise TypeError(f"expected a number or null, got {value!r}")
    return math.nan if value is None else float(value)


def finite_json(value: Any) -> Any:
    """Return a table, list or number with None, JSON's null, in place of numbers that are NaN or infinite."""
    if isinstance(value, Mapping):
        return {key: finite_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Visible:
    """What a decision may look at: the step, training and validation figures. It has no test figures."""

    step: int
    train: SplitMetrics
    validation: SplitMetrics

    @property
    def finite(self) -> bool:
        """Whether the losses are finite numbers; they are not once training has diverged."""
        return self.train.finite and self.validation.finite


@dataclass(frozen=True)
class Evaluation:
    """One evaluated step: what decisions may see, the test figures for the report, the method's own figures."""

    visible: Visible
    test: SplitMetrics
    extra: Mapping[str, float]


def evaluate(problem: Problem, model: nn.Module, step: int, extra: Mapping[str, float]) -> Evaluation:
    """Measure `model` on the three splits of `problem`; it is left in the mode it was in."""
    splits, count = problem.splits, len(problem.splits.environments)
    train, validation, test = (
        measure(problem, model, part, count) for part in (splits.train, splits.validation, splits.test)
    )
    return Evaluation(Visible(step, train, validation), test, dict(extra))


def measure(problem: Problem, model: nn.Module, data: Batch, environments: int) -> SplitMetrics:
    """Measure `model` on `data`, in evaluation mode and in chunks of 10,000 samples."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        outputs = torch.cat([model(chunk.inputs) for chunk in data.chunks(10_000)])
    model.train(was_training)
    losses = problem.loss(outputs, data.targets)
    right = (problem.head.predict(outputs) == data.targets).float()
    if data.environment is None:
        return SplitMetrics(float(right.mean()), float(losses.mean()))
    members = [data.environment == e for e in range(environments)]
    return SplitMetrics(
        accuracy=float(right.mean()),
        loss=float(losses.mean()),
        environment_accuracy=tuple(float(right[member].mean()) for member in members),
        environment_loss=tuple(float(losses[member].mean()) for member in members),
        irmv1=float(reweight.IRMv1()(outputs, data, problem.loss).detach()) if environments > 1 else None,
        vrex=float(reweight.VREx()(outputs, data, problem.loss)) if environments > 1 else None,
    )
