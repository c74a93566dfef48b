"""Columns of dates: which way they are written, and the day that each says."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from steelyard.experiments.data.table import Table
from steelyard.experiments.errors import DataError

__all__ = ["DATE_ORDERS", "DateOrder", "as_day", "date_order", "days_of", "written_day"]

DateOrder: TypeAlias = Literal["", "year first", "day first", "month first"]
"""How the dates of a column are written; "": it holds none."""
DATE_ORDERS: Mapping[DateOrder, str] = {
    "year first": "2024-03-31",
    "day first": "31.03.2024 or 31/03/2024",
    "month first": "03/31/2024",
}

_EPOCH = date(1970, 1, 1).toordinal()
_TIME = r"(?:[T ] *(\d{1,2}):(\d\d)(?::(\d\d(?:\.\d+)?))? ?(Z|UTC|[+-]\d\d:?\d\d)?)?"
_YEAR_FIRST = re.compile(rf"(?P<y>\d{{4}})(?P<sign>[-/.])(?P<m>\d\d?)(?P=sign)(?P<d>\d\d?){_TIME}", re.ASCII)
_YEAR_LAST = re.compile(rf"(?P<a>\d\d?)(?P<sign>[-/.])(?P<b>\d\d?)(?P=sign)(?P<y>\d{{4}}|\d\d){_TIME}", re.ASCII)
_DAY = 86_400  # seconds


def date_order(table: Table, name: str, rows: Sequence[int]) -> DateOrder:
    """Return how the dates of a column are written, by the values of some rows; "" where fewer than half are dates.

    A year that comes first is followed by month and day. Where it comes last, dots mean that the day is first, and
    otherwise a number above 12 tells which one the day is.

    Args:
        table: its column `name` is read.
        name: of the column.
        rows: from 0, of the training rows whose value is known.

    Raises:
        DataError: nothing tells day and month apart, or rows contradict each other, or a year has two digits.
    """
    values = table.columns[name]
    first = sum(_YEAR_FIRST.fullmatch(values[row].strip()) is not None for row in rows)
    last = {row: found for row in rows if (found := _YEAR_LAST.fullmatch(values[row].strip())) and _is_possible(found)}
    if not rows or 2 * (first + len(last)) < len(rows):
        return ""
    if first >= len(last):
        return "year first"
    return _day_or_month_first(table, name, last)


def _is_possible(found: re.Match[str]) -> bool:
    low, high = sorted((int(found["a"]), int(found["b"])))
    return 1 <= low <= 12 and high <= 31


def _day_or_month_first(table: Table, name: str, dates: Mapping[int, re.Match[str]]) -> DateOrder:
    orders: dict[DateOrder, int] = {}  # the first row that tells each
    for row, found in dates.items():
        if len(found["y"]) < 4:
            raise _unclear(table, row, name, "a year of four digits")
        if found["sign"] == "." or int(found["a"]) > 12:
            orders.setdefault("day first", row)
        elif int(found["b"]) > 12:
            orders.setdefault("month first", row)
    if not orders:
        row = next(iter(dates))
        raise _unclear(table, row, name, "a date of which it is clear what the day is, and no row has a day above 12")
    order, *contradicted = orders
    if contradicted:
        other = orders[contradicted[0]]
        raise _unclear(table, other, name, f"a date with the {order}, as in {table.line(orders[order])}")
    return order


def _unclear(table: Table, row: int, name: str, expected: str) -> DataError:
    remedy = f"write dates as {DATE_ORDERS['year first']}, or list {name!r} in data.categorical or data.drop"
    return DataError(f"{table.error(row, name, expected)}; {remedy}")


def days_of(table: Table, name: str, gap: Sequence[bool], order: DateOrder) -> Float[Tensor, " n"]:
    """Return the day of each row, see `as_day`, in float64, and 0 where there is a gap.

    Raises:
        DataError: a value is no date that is written so.
    """
    days = []
    for row, (value, empty) in enumerate(zip(table.columns[name], gap, strict=True)):
        day = 0.0 if empty else as_day(value, order)
        if day is None:
            raise _unclear(table, row, name, f"a date written as {DATE_ORDERS[order]}")
        days.append(day)
    return torch.tensor(days, dtype=torch.float64)


def as_day(value: str, order: DateOrder) -> float | None:
    """Return the days since 1970-01-01, and the part of the day that a time says; None for no date written so.

    A time with an offset is brought to UTC; without one it counts as it stands.

    Example:
        >>> as_day("1970-01-03", "year first"), as_day("02.01.1970 18:00", "day first"), as_day("soon", "day first")
        (2.0, 1.75, None)
    """
    found = (_YEAR_FIRST if order == "year first" else _YEAR_LAST).fullmatch(value.strip())
    if found is None or len(found["y"]) < 4:
        return None
    month, day = _MONTH_AND_DAY[order](found)
    try:
        whole = date(int(found["y"]), month, day).toordinal() - _EPOCH
    except ValueError:  # 30 February
        return None
    seconds = _seconds(found)
    return None if seconds is None else whole + seconds / _DAY


_MONTH_AND_DAY: Mapping[DateOrder, Callable[[re.Match[str]], tuple[int, int]]] = {
    "year first": lambda found: (int(found["m"]), int(found["d"])),
    "day first": lambda found: (int(found["b"]), int(found["a"])),
    "month first": lambda found: (int(found["a"]), int(found["b"])),
}


def _seconds(found: re.Match[str]) -> float | None:
    """Return the seconds of the time since midnight in UTC; 0 without a time, None for one that cannot be."""
    hour, minute, second, offset = found.groups()[4:]
    if hour is None:
        return 0.0
    if int(hour) > 23 or int(minute) > 59 or float(second or 0) >= 61:
        return None
    east = 0
    if offset and offset[0] in "+-":
        east = int(f"{offset[0]}1") * (3600 * int(offset[1:3]) + 60 * int(offset[-2:]))
    return 3600 * int(hour) + 60 * int(minute) + float(second or 0) - east


def written_day(day: float) -> str:
    """Return the date of a day since 1970-01-01, as in 2024-03-31."""
    return date.fromordinal(int(day // 1) + _EPOCH).isoformat()
