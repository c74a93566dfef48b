"""Functions of progress, from 0 at the first outer step to 1 after the last."""

from __future__ import annotations

import math
from dataclasses import dataclass

from steelyard._support import _check
from steelyard.reweight.constraints import check_kinds

__all__ = ["CosineDecay", "CubicBudget", "LinearTemperature"]


@dataclass(frozen=True)
class CosineDecay:
    """Factor of the outer step over the outer run: half a cosine from 1 down to `end`.

    Attributes:
        end: factor at progress 1, in [0, 1].

    Example:
        >>> CosineDecay(0.5)(0.0), CosineDecay(0.5)(0.5), CosineDecay(0.5)(1.0)
        (1.0, 0.75, 0.5)
    """

    end: float | int = 0.02

    def __post_init__(self) -> None:
        _check.store(self, end=_check.in_range("end", self.end, low=0.0, high=1.0))

    def __call__(self, progress: float | int) -> float:
        """Return the factor at `progress` in [0, 1]."""
        _check.in_range("progress", progress, low=0.0, high=1.0)
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class LinearTemperature:
    """Temperature of the relaxed sample over the outer run: from `start` down to `end`, linear in progress.

    The defaults are those of the MAPLE authors' driver, which multiplies the logits by
    ``1 / (0.97 (1 - t / T) + 0.03)``.

    Attributes:
        start: temperature at progress 0, > 0.
        end: temperature at progress 1, > 0.

    Raises:
        ValueError: a temperature that is not positive and finite, or a progress outside [0, 1].

    Example:
        >>> LinearTemperature()(0.0), LinearTemperature(2.0, 1.0)(0.5)
        (1.0, 1.5)
    """

    start: float | int = 1.0
    end: float | int = 0.03

    def __post_init__(self) -> None:
        ends = {name: _check.in_range(name, getattr(self, name), low=0.0, open_low=True) for name in ("start", "end")}
        _check.store(self, **ends)

    def __call__(self, progress: float | int) -> float:
        """Return the temperature at `progress` in [0, 1]."""
        _check.in_range("progress", progress, low=0.0, high=1.0)
        return self.end + (self.start - self.end) * (1 - progress)


@dataclass(frozen=True)
class CubicBudget:
    """Budget over the outer run: `start` at first, then a cubic fall to `target`, then constant.

    The MAPLE authors' schedule: constant until 0.16 of the run, at the target from 0.6 on.

    Attributes:
        start: the budget at progress 0, a share of the samples or a number of them (`budget_of`).
        target: the budget at the end, of the same kind.
        ramp_start: progress in [0, 1] at which K begins to move.
        ramp_end: progress in (ramp_start, 1] from which K stays at `target`.

    Raises:
        ValueError: an argument out of range; a share and a number.

    Example:
        >>> budget = CubicBudget(start=100, target=20)
        >>> [budget(progress) for progress in (0.0, 0.38, 1.0)]
        [100.0, 30.0, 20.0]
    """

    start: float | int
    target: float | int
    ramp_start: float | int = 0.16
    ramp_end: float | int = 0.6

    def __post_init__(self) -> None:
        start, target = (_check.in_range(name, getattr(self, name), low=0.0) for name in ("start", "target"))
        check_kinds("start", start, "target", target)
        ramp_start = _check.in_range("ramp_start", self.ramp_start, low=0.0, high=1.0)
        ramp_end = _check.in_range("ramp_end", self.ramp_end, low=ramp_start, high=1.0, open_low=True)
        _check.store(self, start=start, target=target, ramp_start=ramp_start, ramp_end=ramp_end)

    def __call__(self, progress: float | int) -> float:
        """Return the budget at `progress` in [0, 1]."""
        _check.in_range("progress", progress, low=0.0, high=1.0)
        left = (self.ramp_end - progress) / (self.ramp_end - self.ramp_start)
        return self.target + (self.start - self.target) * min(max(left, 0.0), 1.0) ** 3
