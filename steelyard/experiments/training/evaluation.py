"""Measure a model on the three splits, with the test split's figures kept apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from steelyard import reweight
from steelyard._support import _check
from steelyard._support._modules import evaluating
from steelyard._support._text import shown
from steelyard.bilevel.batch import Batch
from steelyard.experiments.training.calibration import binomial_interval, calibration_error, confidence
from steelyard.experiments.training.class_scores import ClassScores
from steelyard.experiments.training.problem import Problem
from steelyard.experiments.training.regression import Errors, number

__all__ = [
    "Evaluation",
    "SplitMetrics",
    "Visible",
    "evaluate",
    "finite_json",
    "measure",
    "number",
]


_LISTS = (
    *("environment_accuracy", "environment_loss", "class_accuracy", "group_right", "group_count"),
    *("environment_scores", "group_scores"),
)
_ENTRIES: dict[str, Callable[[Any], Any]] = {
    "group_right": lambda count: count,
    "group_count": lambda count: count,
    "environment_scores": ClassScores.from_json,
    "group_scores": ClassScores.from_json,
}
_MOST = 2**53  # of samples: as many as a float counts


@dataclass(frozen=True)
class SplitMetrics:
    """A model's figures on one split.

    Attributes:
        accuracy: share of right predictions; NaN in a regression.
        loss: mean loss, nats; in a regression the squared error of standardised targets.
        environment_accuracy: accuracy in each environment; empty where environments are not known.
        environment_loss: mean loss in each environment, nats; likewise.
        irmv1: the IRMv1 penalty; None where there are no two environments to compare.
        vrex: the V-REx penalty; likewise.
        calibration_error: the expected calibration error, see `calibration_error`.
        group_right: right predictions in each group; empty where groups are not known.
        group_count: samples in each group; likewise.
        adjusted_accuracy: the groups' accuracies averaged with the groups' sizes in TRAINING as weights, as the papers
            on Waterbirds report their average (Sagawa et al. 2020); `accuracy` is the plain one. None where groups are
            not known, or where a group that training has is empty here.
        errors: of a regression; None in a classification.
        class_accuracy: accuracy in each class; NaN for one without a sample; empty in runs of earlier versions.
        scores: figures of ranking and balance, of validation and test; None of training, of a regression, and in runs
            of earlier versions.
        environment_scores: the same in each environment (in data with groups, each attribute); empty where not known.
        group_scores: the same in each group; most mean nothing where a group is of one class.
    """

    accuracy: float
    loss: float
    environment_accuracy: tuple[float, ...] = ()
    environment_loss: tuple[float, ...] = ()
    irmv1: float | None = None
    vrex: float | None = None
    calibration_error: float | None = None
    group_right: tuple[int, ...] = ()
    group_count: tuple[int, ...] = ()
    adjusted_accuracy: float | None = None
    class_accuracy: tuple[float, ...] = ()
    errors: Errors | None = None
    scores: ClassScores | None = None
    environment_scores: tuple[ClassScores, ...] = ()
    group_scores: tuple[ClassScores, ...] = ()

    @property
    def worst_class_accuracy(self) -> float | None:
        """The lowest accuracy of a class that has samples; None where they are not known."""
        return min((accuracy for accuracy in self.class_accuracy if not math.isnan(accuracy)), default=None)

    @property
    def group_accuracy(self) -> tuple[float | None, ...]:
        """The accuracy in each group; None for a group without a sample."""
        pairs = zip(self.group_right, self.group_count, strict=True)
        return tuple(right / count if count else None for right, count in pairs)

    @property
    def worst_group(self) -> int | None:
        """The group of lowest accuracy (the first among equals), of those that have samples; None without groups."""
        known = [(accuracy, group) for group, accuracy in enumerate(self.group_accuracy) if accuracy is not None]
        return min(known)[1] if known else None

    @property
    def worst_group_accuracy(self) -> float | None:
        """The accuracy in `worst_group`."""
        return None if self.worst_group is None else self.group_accuracy[self.worst_group]

    def group_intervals(self, level: float = 0.95) -> tuple[tuple[float, float], ...]:
        """Return each group's `binomial_interval`: what its accuracy may be, given how few samples it has."""
        pairs = zip(self.group_right, self.group_count, strict=True)
        return tuple(binomial_interval(right, count, level) for right, count in pairs)

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> SplitMetrics:
        """Return the metrics in one split's part of a line of metrics.jsonl; null stands for NaN.

        Raises:
            TypeError, ValueError: a field that is missing, unknown, or not a number; an accuracy outside of [0, 1];
                counts that are none.
        """
        values: dict[str, Any] = {}
        for name, value in table.items():
            if name == "errors" or name == "scores":
                kind = Errors if name == "errors" else ClassScores
                values[name] = None if value is None else kind.from_json(value)
                continue
            if isinstance(value, list) != (name in _LISTS):
                raise TypeError(f"{name!r} must be a {'list' if name in _LISTS else 'number'}, got {shown(value)}")
            if isinstance(value, list):
                values[name] = tuple(map(_ENTRIES.get(name, number), value))
            elif not (value is None and _unknown(name, table)):
                values[name] = number(value)
        metrics = cls(**values)
        accuracies = (
            *(metrics.accuracy, metrics.adjusted_accuracy),
            *(*metrics.environment_accuracy, *metrics.class_accuracy),
        )
        for value in accuracies:
            if value is not None and not math.isnan(value):
                _check.in_range("an accuracy", value, low=0.0, high=1.0)
        for right, count in zip(metrics.group_right, metrics.group_count, strict=True):
            _check.integer("group_right", right, low=0, high=_check.integer("group_count", count, low=0, high=_MOST))
        return metrics

    @property
    def finite(self) -> bool:
        """Whether the mean loss is a finite number; it is not once training has diverged."""
        return math.isfinite(self.loss)


def _unknown(name: str, table: Mapping[str, Any]) -> bool:
    """Whether a null under `name` says that the figure does not exist here; elsewhere it stands for NaN."""
    if name in ("irmv1", "vrex"):
        return len(table.get("environment_loss", ())) < 2
    return name in ("adjusted_accuracy", "calibration_error")


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
    """Measure `model` on the three splits of `problem`; it is left in the mode it was in.

    On several ranks each puts its share of the samples through the model, and all have the figures of all samples.
    """
    splits, count = problem.splits, len(problem.splits.environments)
    sizes = (0,) * len(splits.groups)
    if splits.groups and not splits.groups_hidden:
        sizes = _counts(problem.of_all(splits.train).group, len(splits.groups))
    train = measure(problem, model, splits.train, count, sizes)
    validation, test = (
        measure(problem, model, part, count, sizes, scores=True) for part in (splits.validation, splits.test)
    )
    return Evaluation(Visible(step, train, validation), test, dict(extra))


def measure(
    problem: Problem,
    model: nn.Module,
    data: Batch,
    environments: int,
    group_sizes: tuple[int, ...] = (),
    *,
    scores: bool = False,
) -> SplitMetrics:
    """Measure `model` on `data`, in evaluation mode and in chunks of at most 10,000 samples (fewer of large inputs).

    Args:
        problem: for its loss and head.
        model: what to measure.
        data: the samples; on several ranks this one's share.
        environments: how many environments there are.
        group_sizes: the training samples in each group, 0 where these are not known; empty where groups are not.
        scores: also the figures of ranking and balance, which take time.
    """
    with evaluating(model), torch.no_grad():
        outputs = torch.cat([model(chunk.inputs) for chunk in data.chunks(_chunk(data))])
    outputs, data = problem.ranks.gather(outputs), problem.of_all(data)
    losses = problem.loss(outputs, data.targets)
    scale = problem.splits.target_scale
    if scale is not None:
        predicted = problem.head.predict(outputs)
        errors = Errors.of(predicted, data.targets, scale, data.group if group_sizes else None, len(group_sizes))
        metrics, right = SplitMetrics(accuracy=math.nan, loss=float(losses.mean()), errors=errors), None
    else:
        predicted = problem.head.predict(outputs)
        right = predicted == data.targets
        further = _scores(problem, outputs, predicted, data, environments, len(group_sizes)) if scores else {}
        metrics = SplitMetrics(
            accuracy=float(right.float().mean()),
            loss=float(losses.mean()),
            calibration_error=(
                further["scores"].calibration_error if scores else calibration_error(confidence(outputs), right)
            ),
            class_accuracy=_shares(right, data.targets, len(problem.splits.classes)),
            **_group_figures(right, data, group_sizes),
            **further,
        )
    if data.environment is None:
        return metrics
    members = [data.environment == e for e in range(environments)]
    return replace(
        metrics,
        environment_accuracy=() if right is None else tuple(float(right[one].float().mean()) for one in members),
        environment_loss=tuple(float(losses[member].mean()) for member in members),
        irmv1=float(reweight.IRMv1()(outputs, data, problem.loss).detach()) if environments > 1 else None,
        vrex=float(reweight.VREx()(outputs, data, problem.loss)) if environments > 1 else None,
    )


def _chunk(data: Batch) -> int:
    """Return how many samples are measured at once; the activations of a large input would fill the memory."""
    return max(1, min(10_000, 4_000_000 // max(1, math.prod(data.inputs.shape[1:]))))


def _group_figures(right: Tensor, data: Batch, sizes: tuple[int, ...]) -> dict[str, Any]:
    if data.group is None or not sizes:
        return {}
    counts = _counts(data.group, len(sizes))
    rights = _counts(data.group[right], len(sizes))
    adjusted = None
    if any(sizes) and all(count or not size for count, size in zip(counts, sizes, strict=True)):
        shares = [size * r / max(count, 1) for size, r, count in zip(sizes, rights, counts, strict=True)]
        adjusted = sum(shares) / sum(sizes)
    return {"group_right": rights, "group_count": counts, "adjusted_accuracy": adjusted}


def _scores(
    problem: Problem, outputs: Tensor, predicted: Tensor, data: Batch, environments: int, groups: int
) -> dict[str, Any]:
    """Return the figures of ranking and balance of all samples, of each environment and of each group."""

    def inside(ids: Tensor | None, count: int) -> tuple[ClassScores, ...]:
        members = [] if ids is None else [ids == one for one in range(count)]
        return tuple(of(member) for member in members)

    def of(member: Tensor) -> ClassScores:
        return ClassScores.of(outputs[member], predicted[member], data.targets[member], len(problem.splits.classes))

    return {
        "scores": of(torch.ones_like(data.targets, dtype=torch.bool)),
        "environment_scores": inside(data.environment, environments),
        "group_scores": inside(data.group, groups),
    }


def _shares(right: Tensor, ids: Tensor, count: int) -> tuple[float, ...]:
    """Return the share of right predictions for each id; NaN for one without a sample."""
    totals, rights = (torch.bincount(one, minlength=count).tolist() for one in (ids, ids[right]))
    return tuple(one / total if total else math.nan for one, total in zip(rights, totals, strict=True))


def _counts(group: Tensor | None, groups: int) -> tuple[int, ...]:
    return () if group is None else tuple(torch.bincount(group, minlength=groups).tolist())
