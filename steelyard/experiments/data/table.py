"""Read text tables that people give us: every error names the file, the line and the column."""

from __future__ import annotations

import csv
import io
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support._check import nearest
from steelyard._support._files import read_bytes
from steelyard._support._text import few, shown
from steelyard.experiments.errors import DataError

__all__ = ["Table", "as_number", "check_columns", "file_bytes", "read_blanks", "read_csv", "read_spaced"]

_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Table:
    """Some columns of a text table.

    Attributes:
        path: the file.
        columns: the values of each column, as text.
        lines: the line of the file (from 1) that each row stands in, or what else names its place.
        unit: what `lines` counts, for messages.
        more: tables whose rows were appended, see `followed_by`: where each begins, and what it was.
    """

    path: Path
    columns: Mapping[str, Sequence[str]]
    lines: Sequence[int | str]
    unit: str = "line"
    more: tuple[tuple[int, Table], ...] = ()

    def __len__(self) -> int:
        return len(self.lines)

    def place(self, row: int) -> str:
        """Return the file and the line of `row` (from 0), for messages."""
        path = next((table.path for start, table in reversed(self.more) if row >= start), self.path)
        return f"{path}, {self.line(row)}"

    def line(self, row: int) -> str:
        """Return the line of `row`, with the file's name where rows are of more than one file."""
        found = next(((start, table) for start, table in reversed(self.more) if row >= start), None)
        if found is None:
            return f"{self.unit} {self.lines[row]}"
        start, table = found
        return f"{table.unit} {table.lines[row - start]}"

    def with_column(self, name: str, values: Sequence[str]) -> Table:
        """Return the table with the column `name` alone, and these values in it."""
        return replace(self, columns={name: values})

    def followed_by(self, other: Table, absent: Mapping[str, Sequence[str]] = MappingProxyType({})) -> Table:
        """Return the rows of this table and then those of `other`; messages name the file of each.

        Args:
            other: a table with this one's columns.
            absent: values for columns that it lacks.

        Raises:
            DataError: it lacks another column.
        """
        known = {**other.columns, **{name: values for name, values in absent.items() if name not in other.columns}}
        head = f"{other.path}, line 1" if other.unit == "line" else str(other.path)
        check_columns(head, list(known), self.columns)
        columns = {name: [*values, *known[name]] for name, values in self.columns.items()}
        lines = [*self.lines, *other.lines]
        return replace(self, columns=columns, lines=lines, more=(*self.more, (len(self), other)))

    def codes(self, column: str, ids: Mapping[str, int]) -> Int[Tensor, " n"]:
        """Return the id of each row's value; DataError for a value that has none."""
        values = self.columns[column]
        if unknown := set(values).difference(ids):
            row = next(row for row, value in enumerate(values) if value in unknown)
            raise self.error(row, column, f"one of {few(map(repr, ids))}")
        return torch.tensor([ids[value] for value in values], dtype=torch.int64)

    def numbers(self, column: str, *, low: float = -math.inf) -> Float[Tensor, " n"]:
        """Return the column in float64, for what shifts it first; DataError for what is no number, or below `low`.

        One too large for float32 is refused, which the inputs of models are.
        """
        numbers = [as_number(value) for value in self.columns[column]]
        row = next((row for row, x in enumerate(numbers) if not (abs(x) <= _LARGEST and x >= low)), None)
        if row is not None and abs(numbers[row]) > _LARGEST and math.isfinite(numbers[row]):
            raise self.error(row, column, f"a number of size {_LARGEST:.2g} at most (float32)")
        if row is not None:
            raise self.error(row, column, "a number" if low == -math.inf else f"a number >= {low:g}")
        return torch.tensor(numbers, dtype=torch.float64)

    def where(self, keep: Sequence[bool]) -> Table:
        """Return the rows marked in `keep`."""
        rows = [row for row, kept in enumerate(keep) if kept]
        columns = {name: [values[row] for row in rows] for name, values in self.columns.items()}
        return replace(self, columns=columns, lines=[self.lines[row] for row in rows])

    def lower(self, column: str) -> Table:
        """Return the table with the values of `column` in small letters, without blanks around them."""
        values = [value.strip().lower() for value in self.columns[column]]
        return replace(self, columns={**self.columns, column: values})

    def error(self, row: int, column: str, expected: str) -> DataError:
        """Return the error for the value in `row` (from 0) of `column`."""
        value = shown(self.columns[column][row])
        return DataError(f"{self.place(row)}: {column!r} is {value}, expected {expected}")


def read_csv(
    path: Path,
    wanted: Sequence[str] | None,
    header: Sequence[str] | None = None,
    *,
    skip: int = 0,
    separator: str = ",",
    data: bytes | None = None,
) -> Table:
    """Return the columns `wanted` of a comma-separated UTF-8 file.

    Blanks after a comma and blank lines are passed over. Of columns with the same name the first is read.

    Args:
        path: the file.
        wanted: the columns to keep; None: all, of which no two may have the same name.
        header: the columns' names, if the file has no line that says them.
        skip: lines to pass over at the head of the file.
        separator: what stands between two values, one character.
        data: what the file holds, if it was read already.

    Raises:
        DataError: unreadable, not UTF-8, no rows, a column is missing, or a row has too few or too many values.
    """
    text = io.StringIO(_text(path, data), newline="")
    reader = csv.reader(text, skipinitialspace=True, strict=True, delimiter=separator)
    rows = (row for row in _parsed(path, reader) if row[0] > skip)
    return _table(path, rows, wanted, header)


def read_spaced(path: Path, wanted: Sequence[str], header: Sequence[str] | None = None, *, key: str = "") -> Table:
    """Return the columns `wanted` of a UTF-8 file separated by blanks, as CelebA publishes.

    Args:
        path: the file.
        wanted: the columns to keep.
        header: the columns' names, or None if the file says them in its second line, below the number of its rows.
        key: the name of the first column, which such a header leaves out.

    Raises:
        DataError: as `read_csv`; also if the number of rows is not the one that the first line gives.
    """
    rows = [(number, line.split()) for number, line in enumerate(_text(path).splitlines(), 1)]
    rows = [(number, fields) for number, fields in rows if fields]
    if header is not None:
        return _table(path, iter(rows), wanted, header)
    if len(rows) < 2 or len(rows[0][1]) != 1 or not rows[0][1][0].isdigit():
        raise DataError(f"{path}, line 1: expected the number of rows alone, and the columns' names in line 2")
    line, names = rows[1]
    check_columns(f"{path}, line {line}", [key, *names], wanted)
    table = _table(path, iter(rows[2:]), wanted, [key, *names])
    announced = rows[0][1][0].lstrip("0") or "0"  # compared as text: Python takes no number of 5,000 digits
    if announced != str(len(table)):
        raise DataError(
            f"{path}, line 1: announces {few([announced])} rows, the file has {len(table)}; is it truncated?"
        )
    return table


def read_blanks(path: Path, data: bytes | None = None) -> Table:
    """Return all columns of a UTF-8 file separated by blanks, with their names in line 1; errors as `read_csv`."""
    rows = [(number, line.split()) for number, line in enumerate(_text(path, data).splitlines(), 1)]
    return _table(path, (row for row in rows if row[1]), None, None)


def _parsed(path: Path, reader: Iterable[list[str]]) -> Iterator[tuple[int, list[str]]]:
    begins = 1  # the line in which the next row does
    try:
        for fields in reader:
            begins = reader.line_num + 1  # type: ignore[attr-defined]
            if fields:
                yield reader.line_num, fields  # type: ignore[attr-defined]
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            told = "a value is opened by a quotation mark that nothing closes; close it, or double it"
            raise DataError(f"{path}, line {begins}: {told}") from error
        raise DataError(f"{path}, line {reader.line_num}: {error}") from error  # type: ignore[attr-defined]


def _table(
    path: Path, rows: Iterator[tuple[int, list[str]]], wanted: Sequence[str] | None, header: Sequence[str] | None
) -> Table:
    if header is None:
        line, header = next(rows, (1, []))
        check_columns(f"{path}, line {line}", header, header if wanted is None else wanted)
        if wanted is None and len(set(header)) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise DataError(f"{path}, line {line}: there are two columns {twice!r}; rename one of them")
    wanted = header if wanted is None else wanted
    places = [(column, header.index(column)) for column in wanted]
    columns: dict[str, list[str]] = {column: [] for column in wanted}
    lines = []
    for line, fields in rows:
        if len(fields) != len(header):
            raise DataError(
                f"{path}, line {line}: has {len(fields)} values, expected {len(header)}{_separated_by(header)}"
            )
        for column, place in places:
            columns[column].append(fields[place])
        lines.append(line)
    if not lines:
        raise DataError(f"{path} has no rows")
    return Table(path, columns, lines)


def _separated_by(header: Sequence[str]) -> str:
    """Return a remedy where the header's names hold what often separates columns elsewhere."""
    for sign, named in ((";", ";"), ("\t", "\\t"), ("|", "|")):
        if sum(name.count(sign) for name in header) >= len(header):
            return f"; the header holds {named!r}: say --separator {shlex.quote(named)}, or separator in a recipe"
    return "; write the missing values as empty cells, and quote what holds a separator"


def check_columns(place: str, header: Sequence[str], wanted: Iterable[str]) -> None:
    """Raise DataError, which begins with `place`, if a column that is wanted is not in the header."""
    for column in wanted:
        if column not in header:
            raise DataError(
                f"{place}: there is no column {column!r}{nearest(column, header)} (the columns are {few(header)})"
            )


def file_bytes(path: Path) -> bytes:
    """Return what a file holds; DataError where it cannot be read."""
    try:
        return read_bytes(path)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise DataError(f"{path} cannot be read: {error}") from error


def _text(path: Path, data: bytes | None = None) -> str:
    data = file_bytes(path) if data is None else data
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if data[:2] == b"\x1f\x8b":
            raise DataError(f"{path} is compressed (gzip); unpack it first: gunzip {path}") from error
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8 (byte 0x{data[error.start]:02x}); save it as UTF-8") from error


def as_number(value: str) -> float:
    """Return the number that is written, NaN for none; Python's float also takes `3_9` and digits of other scripts."""
    if "_" in value or not value.isascii():
        return math.nan
    try:
        return float(value)
    except ValueError:
        return math.nan
