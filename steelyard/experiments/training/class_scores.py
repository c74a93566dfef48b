"""How well outputs order and name classes: balanced accuracy, F1, AUROC, AUPRC, calibration, with standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard._support._modules import class_logits
from steelyard._support._text import shown
from steelyard.experiments.training.calibration import calibration_error, confidence
from steelyard.experiments.training.regression import number

__all__ = ["ClassScores", "Ranking", "logit_interval"]

_COUNTS = ("class_count", "class_right", "class_predicted")
_MOST = 2**53  # of samples: as many as a float counts


@dataclass(frozen=True)
class ClassScores:
    """A model's figures on some samples; None where a figure means nothing, as AUROC where all are of one class.

    Attributes:
        class_count: samples of each class.
        class_right: right predictions in each class.
        class_predicted: predictions of each class, right or wrong.
        auroc: the area under the ROC curve, of two classes that of class 1, else the mean over classes of one against
            the rest.
        auroc_error: its standard error over samples by DeLong et al. 1988; None with more than two classes, or where a
            class has one sample alone.
        auprc: average precision, likewise.
        calibration_error: see `calibration.calibration_error`; None without a sample.
    """

    class_count: tuple[int, ...]
    class_right: tuple[int, ...]
    class_predicted: tuple[int, ...]
    auroc: float | None = None
    auroc_error: float | None = None
    auprc: float | None = None
    calibration_error: float | None = None

    @property
    def balanced_accuracy(self) -> float | None:
        """The mean accuracy of the classes that have samples; None with fewer than two."""
        shares = self._shares()
        return sum(share for share, _ in shares) / len(shares) if len(shares) > 1 else None

    @property
    def f1(self) -> float | None:
        """The mean of F1 over the classes that have samples, ``2 right / (count + predicted)``; None with one class.

        F1 is the harmonic mean of precision and recall (scikit-learn's `f1_score`, average "macro", which also counts
        a class without samples, with 0, where one is predicted).
        """
        columns = zip(self.class_right, self.class_count, self.class_predicted, strict=True)
        each = [2 * right / (count + predicted) for right, count, predicted in columns if count]
        return sum(each) / len(each) if len(each) > 1 else None

    def _shares(self) -> list[tuple[float, int]]:
        pairs = zip(self.class_right, self.class_count, strict=True)
        return [(right / count, count) for right, count in pairs if count]

    def balanced_accuracy_interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """Return an interval: `logit_interval` with the classes' binomial variances (each count raised by two)."""
        value, shares = self.balanced_accuracy, self._shares()
        if value is None:
            return None
        smoothed = [((share * count + 1) / (count + 2), count) for share, count in shares]  # none has the variance 0
        variance = sum(share * (1 - share) / count for share, count in smoothed) / len(shares) ** 2
        return logit_interval(value, math.sqrt(variance), level)

    def auroc_interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """Return an interval by DeLong's standard error; None where that is not known, or 0: all pairs in order."""
        if self.auroc is None or not self.auroc_error:
            return None
        return logit_interval(self.auroc, self.auroc_error, level)

    def auprc_interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """Return an interval of two classes: logit, binomial in the positives (Boyd et al. 2013, section 3.2).

        None where the average precision is 1: that variance is then 0, however few the positives are.
        """
        if self.auprc is None or self.auprc == 1 or len(self.class_count) != 2:
            return None
        return logit_interval(self.auprc, math.sqrt(self.auprc * (1 - self.auprc) / self.class_count[1]), level)

    @classmethod
    def of(
        cls, outputs: Float[Tensor, "n width"], predicted: Int[Tensor, " n"], targets: Int[Tensor, " n"], classes: int
    ) -> ClassScores:
        """Return the figures of outputs, one logit or a logit per class, and of the classes predicted by them.

        Example:
            >>> logits, labels = torch.tensor([[-1.0], [2.0], [1.0], [3.0]]), torch.tensor([0, 0, 1, 1])
            >>> scores = ClassScores.of(logits, (logits[:, 0] > 0).long(), labels, 2)
            >>> scores.balanced_accuracy, scores.auroc
            (0.75, 0.75)
        """
        right = predicted == targets
        counts, rights, named = (
            tuple(torch.bincount(ids, minlength=classes).tolist()) for ids in (targets, targets[right], predicted)
        )
        gap = calibration_error(confidence(outputs), right) if len(targets) else None
        known = min(counts) > 0 and classes > 1 and bool(torch.isfinite(outputs).all())
        areas = _areas(outputs, targets, classes) if known else {}
        return cls(counts, rights, named, calibration_error=gap, **areas)

    @classmethod
    def from_json(cls, table: Any) -> ClassScores:
        """Return what a line of metrics.jsonl has; TypeError or ValueError where it is damaged."""
        if not isinstance(table, Mapping):
            raise TypeError(f"the scores of classes must be a table, got {shown(table)}")
        values: dict[str, Any] = {}
        for name, value in table.items():
            if isinstance(value, list) != (name in _COUNTS):
                raise TypeError(f"{name!r} must be a {'number' if isinstance(value, list) else 'list'}")
            values[name] = tuple(value) if isinstance(value, list) else None if value is None else number(value)
        scores = cls(**values)
        columns = zip(scores.class_right, scores.class_count, scores.class_predicted, strict=True)
        for right, count, predicted in columns:
            most = min(
                _check.integer("class_count", count, low=0, high=_MOST), _check.integer("class_predicted", predicted)
            )
            _check.integer("class_right", right, low=0, high=most)
        for name in ("auroc", "auprc", "calibration_error"):
            if getattr(scores, name) is not None:
                _check.in_range(name, getattr(scores, name), low=0.0, high=1.0)
        return scores


def logit_interval(value: float, error: float, level: float = 0.95) -> tuple[float, float]:
    """Return an interval for a share with a standard error, symmetric in its logit and so inside [0, 1].

    At 0 and 1, where the logit is infinite, it is the plain one, cut to [0, 1].

    Example:
        >>> low, high = logit_interval(0.9, 0.03)
        >>> round(low, 3), round(high, 3)
        (0.824, 0.945)
    """
    width = NormalDist().inv_cdf((1 + level) / 2) * error
    if not 0 < value < 1:
        return max(0.0, value - width), min(1.0, value + width)
    logit, half = math.log(value / (1 - value)), width / (value * (1 - value))
    low, high = (1 / (1 + math.exp(min(700.0, -one))) for one in (logit - half, logit + half))
    return low, high


@dataclass(frozen=True)
class Ranking:
    """Positives and negatives at every score, from the lowest up; of one sort, which is what takes time.

    Areas are those of scikit-learn (tested), whose checks of arguments take nine tenths of the time on a small split.

    Attributes:
        ups: ``(k,)`` positives at the k different scores.
        downs: ``(k,)`` negatives.

    Example:
        >>> found = Ranking.of(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True]))
        >>> found.auroc, found.auprc
        (0.875, 0.8333333333333333)
    """

    ups: np.ndarray
    downs: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, positive: np.ndarray) -> Ranking:
        """Rank samples by `scores` ``(n,)``, of which those of the mask `positive` ``(n,)`` should be on top."""
        order = np.argsort(scores)
        ordered, up = scores[order], np.cumsum(positive[order])
        ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], len(ordered) > 0))
        ups, all_ = (np.diff(counted, prepend=0) for counted in (up[ends], ends + 1))
        return cls(ups, all_ - ups)

    @property
    def _shares(self) -> tuple[np.ndarray, np.ndarray]:
        """For each score the share of negatives below it, and that of positives above it; those at it count half."""
        below = np.cumsum(self.downs) - 0.5 * self.downs
        above = self.ups.sum() - np.cumsum(self.ups) + 0.5 * self.ups
        return below / self.downs.sum(), above / self.ups.sum()

    @property
    def auroc(self) -> float:
        """The share of pairs of a positive and a negative with the positive above, ties counting half."""
        return float(self.ups @ self._shares[0] / self.ups.sum())

    @property
    def auroc_error(self) -> float | None:
        """Its standard error over samples (DeLong et al. 1988), by midranks (Sun and Xu 2014, equation 8).

        None where either class has fewer than two samples.
        """
        counts = (self.ups, self.downs)
        if min(int(each.sum()) for each in counts) < 2:
            return None
        return math.sqrt(sum(map(_variance_of_mean, self._shares, counts)))

    @property
    def auprc(self) -> float:
        """The average precision: over the positives, the share of positives among the samples at least as high."""
        ups, downs = np.cumsum(self.ups[::-1]), np.cumsum(self.downs[::-1])
        return float(self.ups[::-1] @ (ups / (ups + downs)) / self.ups.sum())


def _variance_of_mean(values: np.ndarray, counts: np.ndarray) -> float:
    """Return the variance of the mean of samples of which `counts` have each of the `values`."""
    count = counts.sum()
    apart = values - counts @ values / count
    return float(counts @ apart**2 / (count - 1) / count)


def _areas(outputs: Tensor, targets: Tensor, classes: int) -> dict[str, float | None]:
    logits, labels = class_logits(outputs).double().cpu(), targets.cpu().numpy()
    if classes == 2:  # the difference of the logits: probabilities that round to 1 would be ties
        one = Ranking.of((logits[:, 1] - logits[:, 0]).numpy(), labels == 1)
        return {"auroc": one.auroc, "auroc_error": one.auroc_error, "auprc": one.auprc}
    shares = logits.softmax(1).numpy()
    each = [Ranking.of(shares[:, number], labels == number) for number in range(classes)]
    return {
        "auroc": sum(one.auroc for one in each) / classes,
        "auprc": sum(one.auprc for one in each) / classes,
    }
