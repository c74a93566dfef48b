"""How the columns of a table become a model's inputs: constants that were fitted to some rows, kept for other rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support._scales import scales_of
from steelyard._support._text import few
from steelyard.experiments.data.dates import DATE_ORDERS, DateOrder, days_of
from steelyard.experiments.data.table import Table
from steelyard.experiments.errors import DataError

__all__ = ["CategoryColumn", "Encoding", "NumberColumn", "gaps_in", "refuse_gaps"]

_MOST_CATEGORIES = 1000


@dataclass(frozen=True)
class NumberColumn:
    """A column of numbers, or of dates, which are days since 1970-01-01: ``(x - mean) / deviation``.

    Attributes:
        name: of the column.
        mean: over the rows that it was fitted to, missing ones at `fill`.
        deviation: likewise; 1 where all those rows have one value.
        fill: what stands in place of a missing number.
        gaps: whether a 0/1 input of its own says that the number is missing.
        dates: how its dates are written; "" for numbers.
    """

    name: str
    mean: float
    deviation: float
    fill: float
    gaps: bool
    dates: DateOrder = ""


@dataclass(frozen=True)
class CategoryColumn:
    """A column of categories: a 0/1 input for each value, all 0 for a value that is not listed.

    Attributes:
        name: of the column.
        values: those of the rows that it was fitted to.
        gaps: whether a last 0/1 input says that the value is missing.
    """

    name: str
    values: tuple[str, ...]
    gaps: bool


@dataclass(frozen=True)
class Encoding:
    """The inputs of a model, column by column: numbers, then where these are missing, then categories.

    Attributes:
        numbers: the columns of numbers.
        categories: the columns of categories.
        missing_marks: what stands for a missing value.
        refuse: whether a missing value is an error.
    """

    numbers: tuple[NumberColumn, ...]
    categories: tuple[CategoryColumn, ...]
    missing_marks: tuple[str, ...]
    refuse: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read, in the order of the inputs."""
        return (*(one.name for one in self.numbers), *(one.name for one in self.categories))

    @property
    def width(self) -> int:
        """The number of inputs."""
        numbers = sum(1 + one.gaps for one in self.numbers)
        return numbers + sum(len(one.values) + one.gaps for one in self.categories)

    @classmethod
    def fit(
        cls,
        table: Table,
        numbers: Sequence[str],
        categories: Sequence[str],
        marks: Sequence[str],
        rows: Int[Tensor, " k"],
        *,
        refuse: bool = False,
        dates: Mapping[str, DateOrder] = MappingProxyType({}),
    ) -> Encoding:
        """Return the encoding whose constants are those of the `rows`.

        Args:
            table: the columns.
            numbers: which of them hold numbers, or dates.
            categories: which hold categories.
            marks: what stands for a missing value.
            rows: positions ``(k,)``, of the training samples.
            refuse: see `Encoding`.
            dates: how the dates are written of those of `numbers` that hold dates.

        Raises:
            DataError: a word among numbers or dates, a number missing in all rows, too many categories.
        """
        places = rows.tolist()
        gaps = {name: gaps_in(table, name, marks) for name in (*numbers, *categories)}
        found = []
        columns = [_fitted_number(table, name, gaps[name], rows, dates.get(name, "")) for name in numbers]
        if columns:
            means, deviations = scales_of(torch.stack([values for values, _ in columns], 1)[rows])
            scales = zip(numbers, means.tolist(), deviations.tolist(), columns, strict=True)
            for name, mean, deviation, (_, fill) in scales:
                some = any(gaps[name][row] for row in places)
                found.append(NumberColumn(name, mean, deviation, fill, some, dates.get(name, "")))
        words = tuple(_fitted_category(table, name, gaps[name], places) for name in categories)
        return cls(tuple(found), words, tuple(marks), refuse)

    def inputs(self, table: Table) -> Float[Tensor, "n width"]:
        """Return the inputs of the rows of a table that has the columns.

        Raises:
            DataError: a word among numbers or dates; or a missing value, where these are refused.
        """
        gaps = {name: gaps_in(table, name, self.missing_marks) for name in self.columns}
        if self.refuse:
            refuse_gaps(table, gaps)
        blocks = []
        if self.numbers:
            found = [_numbers(table, one.name, gaps[one.name], one.fill, one.dates) for one in self.numbers]
            values = torch.stack(found, 1)
            mean = torch.tensor([one.mean for one in self.numbers], dtype=torch.float64)
            deviation = torch.tensor([one.deviation for one in self.numbers], dtype=torch.float64)
            blocks.append(((values - mean) / deviation).float())
        blocks += [torch.tensor(gaps[one.name], dtype=torch.float32)[:, None] for one in self.numbers if one.gaps]
        for column in self.categories:
            width = len(column.values) + column.gaps
            codes = torch.tensor(codes_of(table, column, gaps[column.name]))
            blocks.append(F.one_hot(codes, width + 1)[:, :width].float())
        return torch.cat(blocks, 1)

    def plain(self) -> dict[str, Any]:
        """Return it as JSON's types; `of_plain` takes it back, to the same bits."""
        return {
            "numbers": [vars(one) for one in self.numbers],
            "categories": [{**vars(one), "values": list(one.values)} for one in self.categories],
            "missing_marks": list(self.missing_marks),
            "refuse": self.refuse,
        }

    @classmethod
    def of_plain(cls, found: Mapping[str, Any]) -> Encoding:
        """Return what `plain` gave; KeyError, TypeError or ValueError where that is none."""
        numbers = tuple(
            NumberColumn(
                name=str(one["name"]),
                mean=float(one["mean"]),
                deviation=float(one["deviation"]),
                fill=float(one["fill"]),
                gaps=bool(one["gaps"]),
                dates=_order(one.get("dates", "")),  # files from before there were dates have none
            )
            for one in found["numbers"]
        )
        categories = tuple(
            CategoryColumn(str(one["name"]), tuple(map(str, one["values"])), bool(one["gaps"]))
            for one in found["categories"]
        )
        return cls(numbers, categories, tuple(map(str, found["missing_marks"])), bool(found["refuse"]))


def _order(told: Any) -> DateOrder:
    if told and told not in DATE_ORDERS:
        raise ValueError(f"dates must be one of {', '.join(DATE_ORDERS)}, got {told!r}")
    return cast(DateOrder, told)


def gaps_in(table: Table, name: str, marks: Sequence[str]) -> list[bool]:
    """Return which values of a column are missing."""
    missing = set(marks)
    return [value.strip() in missing for value in table.columns[name]]


def codes_of(table: Table, column: CategoryColumn, gap: Sequence[bool]) -> list[int]:
    """Return the 0/1 input of each row's value; the number of inputs where it has none."""
    ids = {value: code for code, value in enumerate(column.values)}
    width = len(column.values) + column.gaps
    missing = len(column.values) if column.gaps else width
    return [
        missing if empty else ids.get(value, width)
        for value, empty in zip(table.columns[column.name], gap, strict=True)
    ]


def refuse_gaps(table: Table, gaps: Mapping[str, Sequence[bool]]) -> None:
    """Raise DataError for the first value that is missing."""
    first = min(((list(gap).index(True), name) for name, gap in gaps.items() if True in gap), default=None)
    if first is not None:
        row, name = first
        every = sum(map(sum, gaps.values()))
        raise table.error(
            row,
            name,
            f'a value ({every} are missing in all); set data.missing = "category", list {name!r} in data.drop, '
            "or fill them in",
        )


def _numbers(table: Table, name: str, gap: Sequence[bool], fill: float, dates: DateOrder) -> Float[Tensor, " n"]:
    """Return a column of numbers or days in float64, gaps filled."""
    if dates:
        return torch.where(torch.tensor(gap), fill, days_of(table, name, gap, dates))
    column = ["0" if empty else value for value, empty in zip(table.columns[name], gap, strict=True)]
    try:
        numbers = table.with_column(name, column).numbers(name)
    except DataError as error:
        raise DataError(f"{error}; mend it, or list {name!r} in data.categorical or data.drop") from error
    return torch.where(torch.tensor(gap), fill, numbers)


def _fitted_number(
    table: Table, name: str, gap: Sequence[bool], train: Int[Tensor, " k"], dates: DateOrder
) -> tuple[Float[Tensor, " n"], float]:
    """Return a column of numbers or days, gaps filled with the mean of the training rows, and that mean."""
    numbers = _numbers(table, name, gap, 0.0, dates)
    known = ~torch.tensor(gap)
    fitted = numbers[train][known[train]]
    if not len(fitted):
        raise DataError(f"{table.path}: {name!r} is missing in every row of the training split; list it in data.drop")
    fill = float(fitted.mean())
    return torch.where(known, numbers, fill), fill


def _fitted_category(table: Table, name: str, gap: Sequence[bool], train: Sequence[int]) -> CategoryColumn:
    values = table.columns[name]
    known = sorted({values[row] for row in train if not gap[row]})
    if len(known) > _MOST_CATEGORIES:
        raise DataError(
            f"{table.path}: {name!r} has {len(known)} different words in the training split, {_MOST_CATEGORIES} at "
            f"most are made columns of ({few(known)}); list it in data.drop, or as data.id if it names the samples"
        )
    return CategoryColumn(name, tuple(known), any(gap[row] for row in train))
