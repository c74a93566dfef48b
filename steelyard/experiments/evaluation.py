"""Measure a model on the three splits, with the test split's figures kept apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from steelyard import reweight
from steelyard.bilevel.batch import Batch
from steelyard.experiments.problem import Problem

__all__ = ["Evaluation", "SplitMetrics", "Visible", "evaluate", "measure"]


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
        """Return the metrics in one split's part of a line of metrics.jsonl."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in table.items()}
        return cls(**values)


@dataclass(frozen=True)
class Visible:
    """What a decision may look at: the step, training and validation figures. It has no test figures."""

    step: int
    train: SplitMetrics
    validation: SplitMetrics


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
