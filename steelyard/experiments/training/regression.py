"""Figures of a regression: errors in the units of the target, over all samples and in each group."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support._text import shown

__all__ = ["Errors"]

_LISTS = ("group_mse", "group_mae", "group_r2")


@dataclass(frozen=True)
class Errors:
    """A model's errors on one split.

    Attributes:
        mse: mean squared error, in the square of the target's unit.
        mae: mean absolute error, in the target's unit.
        r2: the coefficient of determination, ``1 - sum (y - f)^2 / sum (y - mean y)^2``; NaN where all targets are the
            same.
        group_mse: the mean squared error in each group, NaN for one without a sample; empty where groups are not known.
        group_mae: the mean absolute error there.
        group_r2: the coefficient of determination there, by the group's own mean.
    """

    mse: float
    mae: float
    r2: float
    group_mse: tuple[float, ...] = ()
    group_mae: tuple[float, ...] = ()
    group_r2: tuple[float, ...] = ()

    @property
    def worst_group_mse(self) -> float | None:
        """The largest mean squared error of a group that has samples; None where groups are not known."""
        return max((one for one in self.group_mse if not math.isnan(one)), default=None)

    @classmethod
    def of(
        cls,
        predicted: Float[Tensor, " n"],
        targets: Float[Tensor, " n"],
        scale: tuple[float, float],
        group: Int[Tensor, " n"] | None,
        groups: int,
    ) -> Errors:
        """Return the errors of standardised predictions; `scale` is the target's mean and standard deviation.

        Example:
            >>> Errors.of(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 2.0]), (5.0, 10.0), None, 0)
            Errors(mse=50.0, mae=5.0, r2=-1.0, group_mse=(), group_mae=(), group_r2=())
        """
        error, target = scale[1] * (predicted.double() - targets.double()), scale[1] * targets.double()
        members = [] if group is None else [group == g for g in range(groups)]
        inside = [_figures(error[member], target[member]) for member in members]
        columns = zip(*inside, strict=True) if inside else ((), (), ())
        return cls(*_figures(error, target), *(tuple(column) for column in columns))

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Errors:
        """Return what a line of metrics.jsonl has; TypeError or ValueError where it is damaged. null stands for NaN."""
        if not isinstance(table, Mapping):
            raise TypeError(f"'errors' must be a table, got {shown(table)}")
        values: dict[str, Any] = {}
        for name, value in table.items():
            if isinstance(value, list) != (name in _LISTS):
                raise TypeError(f"{name!r} must be a {'list' if name in _LISTS else 'number'}, got {shown(value)}")
            values[name] = tuple(map(number, value)) if isinstance(value, list) else number(value)
        return cls(**values)


def _figures(error: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> tuple[float, float, float]:
    if not len(error):
        return (math.nan,) * 3
    spread = (target - target.mean()).square().sum()
    r2 = 1 - error.square().sum() / spread if bool(spread > 0) else torch.tensor(math.nan)
    return float(error.square().mean()), float(error.abs().mean()), float(r2)


def number(value: Any) -> float:
    """Return a number of metrics.jsonl, NaN for null (JSON has no NaN)."""
    if isinstance(value, bool) or not (value is None or isinstance(value, (int, float))):
        raise TypeError(f"expected a number or null, got {shown(value)}")
    try:
        return math.nan if value is None else float(value)
    except OverflowError:
        raise ValueError(f"expected a number that a float can hold, got {shown(value)}") from None
