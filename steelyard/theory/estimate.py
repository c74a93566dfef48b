"""A number and what is known about it: exact, Monte Carlo, or on which side of the truth it lies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["Estimate", "Side"]

Side = Literal["exact", "upper", "lower", "either"]

_FLIPPED: dict[str, Side] = {"exact": "exact", "upper": "lower", "lower": "upper", "either": "either"}


@dataclass(frozen=True)
class Estimate:
    """A value, the side of the truth it lies on, and its Monte Carlo standard error.

    Attributes:
        value: the number, in the units of the loss.
        side: "exact"; "upper" (never below the truth); "lower" (never above it); "either" (not known). With a positive
            `standard_error` the side speaks of the mean of the Monte Carlo estimate.
        standard_error: of the Monte Carlo mean, in the units of the loss; 0 without Monte Carlo.
        note: where it comes from, for the reader of a table.

    Raises:
        ValueError: value not finite, or standard error negative or not finite.

    Example:
        >>> (Estimate(1.0) + Estimate(0.5, "upper").scaled(-2.0)).nature
        'lower'
        >>> Estimate(0.3, standard_error=0.01).nature
        'Monte Carlo ± 0.01'
    """

    value: float
    side: Side = "exact"
    standard_error: float = 0.0
    note: str = ""

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"value must be finite, got {self.value}")
        if not (math.isfinite(self.standard_error) and self.standard_error >= 0):
            raise ValueError(f"standard_error must be finite and >= 0, got {self.standard_error}")

    @property
    def nature(self) -> str:
        """The side and the Monte Carlo error in words, for a table."""
        if self.standard_error == 0:
            return self.side
        spread = f"Monte Carlo ± {self.standard_error:.2g}"
        return spread if self.side == "exact" else f"{self.side}, {spread}"

    def scaled(self, factor: float) -> Estimate:
        """Return `factor` times the estimate; a negative factor turns an upper estimate into a lower one."""
        side = self.side if factor >= 0 else _FLIPPED[self.side]
        value = factor * self.value + 0.0  # adding zero turns -0.0 into 0.0, which tables print
        return Estimate(value, side, abs(factor) * self.standard_error, self.note)

    def __add__(self, other: Estimate) -> Estimate:
        """Return the sum: sides combine, standard errors of independent estimates add in quadrature."""
        return Estimate(
            self.value + other.value,
            _joined(self.side, other.side),
            math.hypot(self.standard_error, other.standard_error),
        )


def _joined(first: Side, second: Side) -> Side:
    if first == "exact":
        return second
    return first if second in ("exact", first) else "either"
