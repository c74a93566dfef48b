"""A table of one's own: CSV, Parquet or npz."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support._text import few
from steelyard.experiments.data.columns import read_any
from steelyard.experiments.data.labelled import Labelled, check_distinct, sha256
from steelyard.experiments.data.splits import Splits
from steelyard.experiments.data.table import Table, as_number, check_columns, file_bytes
from steelyard.experiments.data.tabular import standardise
from steelyard.experiments.errors import DataError

__all__ = ["OwnTable"]

_MOST_CATEGORIES = 1000


@dataclass(frozen=True, kw_only=True)
class OwnTable(Labelled):
    """A table of your own, a row a sample.

    Input: a vector. Numbers, standardised by the training rows; then, of each column of categories, a 0/1 column for
        each value that training rows have (a value that only other rows have is 0 in all of them, and said).
    Label, metadata, splits: as the settings of `Labelled` say.
    Missing values: refused, or with ``missing = "category"`` a 0/1 column of their own, where training rows have some;
        a missing number is then the mean of training.

    Attributes:
        file: .csv (or any other text), .parquet or .npz, from the working directory. Text is UTF-8 with the columns'
            names in its first line; in an .npz each array is a column, one of two axes several, called name.0, name.1
            and so on.
        features: the columns that the model sees; empty: all that have no other role and are not in `drop`. A column
            without a name (a row's number, as pandas writes it) is none.
        drop: columns that it does not see.
        numeric: columns that hold numbers. A column of neither list holds numbers if half of the values that training
            rows have, or more, are numbers; a word in it is then an error.
        categorical: columns that hold categories, whatever they look like.
        missing: what to do with missing values of features.
        missing_marks: what stands for a missing value.
        separator: what stands between two values of a line of text.
    """

    name: Literal["table"] = "table"
    file: str
    features: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    missing: Literal["refuse", "category"] = "refuse"
    missing_marks: tuple[str, ...] = ("", "NA", "N/A", "NaN", "nan", "null")
    separator: str = ","

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.file:
            raise ValueError("file must name a table (.csv, .parquet or .npz), got ''")
        if len(self.separator) != 1 or self.separator in '"\r\n ':
            raise ValueError(f"separator must be one character such as ',', ';' or '\\t', got {self.separator!r}")
        for name in ("features", "drop", "numeric", "categorical"):
            check_distinct(name, getattr(self, name))
        for one, other in (("numeric", "categorical"), ("features", "drop")):
            if both := set(getattr(self, one)) & set(getattr(self, other)):
                raise ValueError(f"{one} and {other} both name {min(both)!r}")
        if self.target in self.features:
            raise ValueError(f"features names the target, {self.target!r}: the model would be told the answer")

    @property
    def source(self) -> str:
        """The file."""
        return self.file

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of the file; DataError where it cannot be read."""
        return {self.file: sha256(file_bytes(Path(self.file)))}

    def load(self, seed: int, root: Path | None = None, download: bool = False) -> Splits:
        """Return the splits that the table says, or that `seed` makes; `root` and `download` are not needed.

        Raises:
            DataError: the file is missing, empty or damaged; a column is missing; a value does not fit (its line and
                column are named); a class, a group or an environment has no sample in a split.
        """
        path = Path(self.file)
        if not path.exists():
            raise DataError(f"data.file: there is no file {path} (paths begin in the working directory, {Path.cwd()})")
        data = file_bytes(path)
        table = read_any(path, data, self.separator)
        head = f"{path}, line 1" if table.unit == "line" else str(path)
        check_columns(head, list(table.columns), (*self.roles, *self.features, *self.drop))
        seen = self._seen(table)
        check_columns(f"{head}: data.numeric and data.categorical", seen, (*self.numeric, *self.categorical))

        def features(train: Int[Tensor, " k"]) -> tuple[Tensor, tuple[str, ...]]:
            return self._encoded(table, seen, train)

        digests = {self.file: sha256(data)}
        return self.splits_of(table, seed, features, digests, self.missing_marks)

    def _seen(self, table: Table) -> list[str]:
        """Return the columns that are inputs."""
        if self.features:
            return list(self.features)
        others = {*self.roles, *self.drop, ""}
        if not (seen := [column for column in table.columns if column not in others]):
            raise DataError(f"{table.path}: no column is left for the model to see; name some in data.features")
        return seen

    def _encoded(
        self, table: Table, seen: Sequence[str], train: Int[Tensor, " k"]
    ) -> tuple[Float[Tensor, "n width"], tuple[str, ...]]:
        """Return the inputs of all rows, with what is fitted (scales, categories) taken from the rows `train`."""
        rows, marks = train.tolist(), set(self.missing_marks)
        gaps = {name: [value.strip() in marks for value in table.columns[name]] for name in seen}
        if self.missing == "refuse":
            self._refuse_gaps(table, gaps)
        numbers = [name for name in seen if self._is_numeric(table, name, gaps[name], rows)]
        words = [name for name in seen if name not in numbers]
        width = [_numbers(table, name, gaps[name], train) for name in numbers]
        blocks = [standardise(torch.stack(width, 1), train)] if width else []
        notes = [*_listed("Numbers, standardised by the training rows", numbers), *_listed("Categories", words)]
        for name in numbers:
            if any(gaps[name]):
                notes.append(_of_gaps(table, name, gaps[name], "the mean of the training rows in its place"))
            if any(gaps[name][row] for row in rows):
                blocks.append(torch.tensor(gaps[name], dtype=torch.float32)[:, None])
        for name in words:
            block, unseen = _one_hot(table, name, gaps[name], rows)
            blocks.append(block)
            notes += unseen
        return torch.cat(blocks, 1), tuple(notes)

    def _refuse_gaps(self, table: Table, gaps: dict[str, list[bool]]) -> None:
        """Raise DataError for the first value that is missing."""
        first = min(((gap.index(True), name) for name, gap in gaps.items() if True in gap), default=None)
        if first is not None:
            row, name = first
            every = sum(map(sum, gaps.values()))
            raise table.error(
                row,
                name,
                f'a value ({every} are missing in all); set data.missing = "category", list {name!r} in data.drop, '
                "or fill them in",
            )

    def _is_numeric(self, table: Table, name: str, gap: Sequence[bool], train: Sequence[int]) -> bool:
        """Return whether a column holds numbers, as it was said or by the values of the training rows."""
        if name in self.numeric or name in self.categorical:
            return name in self.numeric
        known = [table.columns[name][row] for row in train if not gap[row]]
        count = sum(_is_number(value) for value in known)
        return bool(known) and 2 * count >= len(known)


def _is_number(value: str) -> bool:
    number = as_number(value)
    return number == number or value.strip().lower() in ("nan", "-nan", "+nan")


def _numbers(table: Table, name: str, gap: Sequence[bool], train: Int[Tensor, " k"]) -> Float[Tensor, " n"]:
    """Return a column of numbers, gaps filled with the mean of the training rows."""
    column = ["0" if empty else value for value, empty in zip(table.columns[name], gap, strict=True)]
    filled = Table(table.path, {name: column}, table.lines, table.unit)
    try:
        numbers = filled.numbers(name)
    except DataError as error:
        raise DataError(f"{error}; mend it, or list {name!r} in data.categorical or data.drop") from error
    known = torch.tensor([not empty for empty in gap])
    fitted = numbers[train][known[train]]
    if not len(fitted):
        raise DataError(f"{table.path}: {name!r} is missing in every row of the training split; list it in data.drop")
    return torch.where(known, numbers, fitted.double().mean().float())


def _one_hot(
    table: Table, name: str, gap: Sequence[bool], train: Sequence[int]
) -> tuple[Float[Tensor, "n width"], list[str]]:
    """Return a 0/1 column for each value of the training rows (a missing one last), and what has to be said."""
    values = table.columns[name]
    known = sorted({values[row] for row in train if not gap[row]})
    if len(known) > _MOST_CATEGORIES:
        raise DataError(
            f"{table.path}: {name!r} has {len(known)} different words in the training split, {_MOST_CATEGORIES} at "
            "most are made columns of; list it in data.drop, or as data.id if it names the samples"
        )
    ids = {value: code for code, value in enumerate(known)}
    width = len(known) + any(gap[row] for row in train)
    missing = len(known) if width > len(known) else width
    codes = [missing if empty else ids.get(value, width) for value, empty in zip(values, gap, strict=True)]
    notes = [_of_gaps(table, name, gap, "a category of its own")] if any(gap) else []
    unseen = [row for row, code in enumerate(codes) if code == width and not gap[row]]
    if unseen:
        few_values = few(sorted({repr(values[row]) for row in unseen}))
        notes.append(
            f"{name}: {len(unseen)} rows outside of the training split have a value that no training row has "
            f"({few_values}; the first in {table.unit} {table.lines[unseen[0]]}); all its columns are 0 there."
        )
    return F.one_hot(torch.tensor(codes), width + 1)[:, :width].float(), notes


def _of_gaps(table: Table, name: str, gap: Sequence[bool], what: str) -> str:
    first = f"the first in {table.unit} {table.lines[list(gap).index(True)]}"
    return f"{name}: missing in {sum(gap)} of {len(gap)} rows ({first}), {what}."


def _listed(what: str, names: Sequence[str]) -> Iterator[str]:
    if names:
        yield f"{what}: {', '.join(names)}."
