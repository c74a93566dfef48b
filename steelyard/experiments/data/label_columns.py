"""Columns of labels: classes, measurements, combinations, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support._scales import scales_of
from steelyard.experiments.data.table import Table, as_number
from steelyard.experiments.errors import DataError

__all__ = [
    "NotClasses",
    "check_classes",
    "check_filled",
    "combined",
    "covers",
    "scale_of",
    "sorted_values",
    "unique_rows",
]

_MOST_NUMBERS = 100  # classes that are numbers: beyond, they are measurements and not names


class NotClasses(DataError):
    """The values of a target are measurements and not names of classes."""


def check_filled(
    table: Table, column: str, empty: Sequence[str], more: str = "", what: str = "a value: labels may not be missing"
) -> None:
    """Raise DataError where the column has one of the `empty` marks; `what` is expected there, and `more` is added."""
    marks = set(empty)
    row = next((row for row, value in enumerate(table.columns[column]) if value in marks), None)
    if row is not None:
        raise table.error(row, column, f"{what}{more}")


def check_classes(table: Table, column: str, found: tuple[str, ...]) -> None:
    """Raise NotClasses if the values are measurements and not classes."""
    numbers = [as_number(value) for value in found]
    fraction = next((value for value, x in zip(found, numbers, strict=True) if x % 1), None)
    if any(x != x for x in numbers) or (fraction is None and len(found) <= _MOST_NUMBERS):
        return
    row = list(table.columns[column]).index(found[-1] if fraction is None else fraction)
    error = table.error(
        row,
        column,
        f"a class ({len(found)} different numbers are there); make classes of them, list them as `classes`, or set "
        "data.task = 'regression'",
    )
    raise NotClasses(str(error))


def scale_of(table: Table, column: str, values: Float[Tensor, " k"]) -> tuple[float, float]:
    """Return mean and standard deviation of the training rows' targets."""
    (mean,), (deviation,) = (one.tolist() for one in scales_of(values[:, None]))
    if not bool((values != values[0]).any()):
        same = f"{column!r} is {float(values[0]):g} in every training row"
        raise DataError(f"{table.path}: {same}; there is nothing to learn")
    return mean, deviation


def sorted_values(values: Sequence[str]) -> tuple[str, ...]:
    """Return the values that occur: numbers by size, words by the alphabet."""
    found = sorted(set(values))
    numbers = {value: as_number(value) for value in found}
    if all(x == x for x in numbers.values()):
        found.sort(key=numbers.__getitem__)
    return tuple(found)


def combined(
    table: Table, columns: Sequence[str], hidden: Sequence[bool] | None = None
) -> tuple[Int[Tensor, " n"], tuple[str, ...]]:
    """Return an id for each row's combination of the columns' values (0 of rows that are `hidden`), and their names."""
    if hidden is not None:
        codes = torch.zeros(len(table), dtype=torch.int64)
        codes[~torch.tensor(hidden)], names = combined(table.where([not gone for gone in hidden]), columns)
        return codes, names
    codes, names = torch.zeros(len(table), dtype=torch.int64), ("",)
    for column in columns:
        values = sorted_values(table.columns[column])
        codes = codes * len(values) + table.codes(column, {value: code for code, value in enumerate(values)})
        names = tuple(f"{name}, {value}" if name else value for name in names for value in values)
    return codes, names if columns else ()


def unique_rows(*columns: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Return a number for each row, the same for equal rows."""
    return torch.unique(torch.stack(columns, 1), dim=0, return_inverse=True)[1]


def covers(ids: Int[Tensor, " n"], count: int) -> bool:
    """Return whether the ids are exactly 0 .. count - 1, each there."""
    return torch.unique(ids).tolist() == list(range(count))
