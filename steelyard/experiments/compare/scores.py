"""Figures of ranking and balance in a comparison: a table of their own, with intervals over the test samples."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from steelyard.experiments.training.calibration import binomial_interval
from steelyard.experiments.training.class_scores import ClassScores
from steelyard.experiments.training.evaluation import SplitMetrics

__all__ = ["FIGURES", "Interval", "figures", "intervals"]

Interval = tuple[float, float]


@dataclass(frozen=True)
class _Figure:
    """How a figure is read off the metrics of the test split, and its 95 % interval over samples."""

    value: Callable[[SplitMetrics], float | None]
    interval: Callable[[SplitMetrics], Interval | None] = lambda metrics: None


def _overall(name: str) -> _Figure:
    return _Figure(
        lambda metrics: None if metrics.scores is None else getattr(metrics.scores, name),
        lambda metrics: None if metrics.scores is None else _interval(metrics.scores, name),
    )


def _worst(where: str, name: str) -> _Figure:
    """Return the lowest figure of an environment or a group; unknown where one set alone has it."""

    def worst(metrics: SplitMetrics) -> ClassScores | None:
        known = [one for one in getattr(metrics, where) if getattr(one, name) is not None]
        return min(known, key=lambda one: getattr(one, name)) if len(known) > 1 else None

    return _Figure(
        lambda metrics: getattr(worst(metrics), name, None),
        lambda metrics: None if (found := worst(metrics)) is None else _interval(found, name),
    )


def _interval(scores: ClassScores, name: str) -> Interval | None:
    found: Callable[[], Interval | None] = getattr(scores, f"{name}_interval", lambda: None)
    return found()


def _highest_calibration_error(metrics: SplitMetrics) -> float | None:
    known = [one.calibration_error for one in metrics.group_scores if one.calibration_error is not None]
    return max(known, default=None)


def _worst_group_interval(metrics: SplitMetrics) -> Interval | None:
    return None if metrics.worst_group is None else metrics.group_intervals()[metrics.worst_group]


def _worst_class_interval(metrics: SplitMetrics) -> Interval | None:
    if metrics.scores is None:
        return None
    pairs = [pair for pair in zip(metrics.scores.class_right, metrics.scores.class_count, strict=True) if pair[1]]
    return binomial_interval(*min(pairs, key=lambda pair: pair[0] / pair[1])) if pairs else None


FIGURES: Mapping[str, _Figure] = {
    "test worst-class accuracy": _Figure(lambda metrics: metrics.worst_class_accuracy, _worst_class_interval),
    "test balanced accuracy": _overall("balanced_accuracy"),
    "test F1": _overall("f1"),
    "test AUROC": _overall("auroc"),
    "test AUPRC": _overall("auprc"),
    "test calibration error": _Figure(lambda metrics: metrics.calibration_error),
    "test worst-group calibration error": _Figure(_highest_calibration_error),
    "test worst-environment balanced accuracy": _worst("environment_scores", "balanced_accuracy"),
    "test worst-environment F1": _worst("environment_scores", "f1"),
    "test worst-environment AUROC": _worst("environment_scores", "auroc"),
    "test worst-environment AUPRC": _worst("environment_scores", "auprc"),
    "test worst-group balanced accuracy": _worst("group_scores", "balanced_accuracy"),
    "test worst-group F1": _worst("group_scores", "f1"),
    "test worst-group AUROC": _worst("group_scores", "auroc"),
    "test worst-group AUPRC": _worst("group_scores", "auprc"),
}
"""Figures by name. Of groups with one class each (label x attribute) the last four mean nothing, and are not there."""

_SAMPLES = {**FIGURES, "test worst-group accuracy": _Figure(lambda _: None, _worst_group_interval)}


def figures(tests: Sequence[SplitMetrics]) -> dict[str, list[float]]:
    """Return the figures that all of `tests`, a seed each, have: by name a value for each seed."""
    values = {name: [one.value(metrics) for metrics in tests] for name, one in FIGURES.items()}
    return {name: found for name, of in values.items() if (found := _known(of)) and len(found) == len(tests)}


def intervals(tests: Sequence[SplitMetrics]) -> dict[str, Interval]:
    """Return 95 % intervals over the test samples by name: the mean over seeds of both ends.

    Seeds that share their test samples share their luck with these, so the interval of a mean over seeds is about as
    wide as that of one.
    """
    found: dict[str, Interval] = {}
    for name, one in _SAMPLES.items():
        ends = _known(one.interval(metrics) for metrics in tests)
        if ends and len(ends) == len(tests):
            low, high = (statistics.fmean(side) for side in zip(*ends, strict=True))
            found[name] = (low, high)
    return found


def _known(values: Iterable) -> list:  # type: ignore[type-arg]
    return [value for value in values if value is not None]
