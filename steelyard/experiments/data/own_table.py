"""A table of one's own: CSV, Parquet or npz."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support._text import few
from steelyard.experiments.data.columns import read_any
from steelyard.experiments.data.dates import DateOrder, date_order
from steelyard.experiments.data.encoding import CategoryColumn, Encoding, gaps_in, refuse_gaps
from steelyard.experiments.data.labelled import Labelled
from steelyard.experiments.data.own_data import check_distinct, sha256
from steelyard.experiments.data.splits import Splits
from steelyard.experiments.data.table import Table, as_number, check_columns, file_bytes
from steelyard.experiments.data.whole import whole_of
from steelyard.experiments.errors import DataError

__all__ = ["OwnTable"]


@dataclass(frozen=True, kw_only=True)
class OwnTable(Labelled):
    """A table of your own, a row a sample.

    Input: a vector. Numbers, and dates as days, standardised by the training rows; then, of each column of categories,
        a 0/1 column for each value that training rows have (one that only other rows have is 0 in all of them, and
        said).
    Label, metadata, splits: as the settings of `Labelled` say.
    Missing values: refused, or with ``missing = "category"`` a 0/1 column of their own, where training rows have some;
        a missing number is then the mean of training.

    Attributes:
        file: .csv (or any other text), .parquet or .npz, from the working directory. Text is UTF-8 with the columns'
            names in its first line; in an .npz each array is a column, one of two axes several, called name.0, name.1
            and so on.
        clean: a second file with these columns (but `split`, `id` and those that the model does not see may be
            missing), whose rows have labels that are known to be right: all of them are the validation split, and all
            rows of `file` are for training and test.
        features: the columns that the model sees; empty: all that have no other role and are not in `drop`. A column
            without a name (a row's number, as pandas writes it) is none.
        drop: columns that it does not see.
        numeric: columns that hold numbers. A column of neither list holds numbers if half of the values that training
            rows have, or more, are numbers; a word in it is then an error. The same for dates, see `date_order`.
        categorical: columns that hold categories, whatever they look like.
        missing: what to do with missing values of features.
        missing_marks: what stands for a missing value.
        separator: what stands between two values of a line of text.
    """

    name: Literal["table"] = "table"
    file: str
    clean: str = ""
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
        """Return the SHA-256 of each file; DataError where one cannot be read."""
        files = filter(None, [self.file, self.clean])
        return {name: sha256(file_bytes(Path(name))) for name in files}

    def load(self, seed: int, root: Path | None = None, download: bool = False) -> Splits:
        """Return the splits that the table says, or that `seed` makes; `root` and `download` are not needed.

        Raises:
            DataError: the file is missing, empty or damaged; a column is missing; a value does not fit (its line and
                column are named); a class, a group or an environment has no sample in a split.
        """
        table, digests, clean = self._read()
        seen = self._checked(table)
        fitted: list[Encoding] = []
        features = partial(self._features, table, seen, fitted)
        splits = self.splits_of(table, seed, features, digests, self.missing_marks, clean=clean)
        return replace(splits, encoding=fitted[0])

    def whole(self) -> Splits:
        """Return all rows as the training split, for what holds rows out by itself.

        Validation and test are the same rows again: nothing may be chosen, and nothing measured, by them.

        Raises:
            DataError: as `load`.
        """
        table, digests, _ = self._read()
        seen = self._checked(table)
        fitted: list[Encoding] = []
        splits = whole_of(self, table, partial(self._features, table, seen, fitted), digests, self.missing_marks)
        return replace(splits, encoding=fitted[0])

    def read(self) -> Table:
        """Return the table, the rows of `clean` last, as text; DataError as `load`."""
        return self._read()[0]

    def _read(self) -> tuple[Table, dict[str, str], int]:
        """Return the table, the digest of each file, and how many rows at the end are those of `clean`."""
        table, digest = self._file(self.file, "data.file")
        check_columns(_head(table), list(table.columns), (*self.roles, *self.features, *self.drop))
        if not self.clean:
            return table, {self.file: digest}, 0
        clean, other = self._file(self.clean, "data.clean")
        names = {
            self.split: ["validation"] * len(clean),
            self.id: [f"clean {row}" for row in range(len(clean))],
            **{name: [""] * len(clean) for name in (*self.drop, "")},
        }
        absent = {name: values for name, values in names.items() if name in table.columns}
        if self.features:  # what is neither seen nor a label may be missing there
            unseen = {*table.columns} - {*self.features, *self.roles}
            absent |= {name: [""] * len(clean) for name in unseen}
        return table.followed_by(clean, absent), {self.file: digest, self.clean: other}, len(clean)

    def _file(self, name: str, field: str) -> tuple[Table, str]:
        path = Path(name)
        if not path.exists():
            raise DataError(f"{field}: there is no file {path} (paths begin in the working directory, {Path.cwd()})")
        data = file_bytes(path)
        return read_any(path, data, self.separator), sha256(data)

    def _seen(self, table: Table) -> list[str]:
        """Return the columns that are inputs."""
        if self.features:
            return list(self.features)
        others = {*self.roles, *self.drop, ""}
        if not (seen := [column for column in table.columns if column not in others]):
            raise DataError(f"{table.path}: no column is left for the model to see; name some in data.features")
        return seen

    def _checked(self, table: Table) -> list[str]:
        """Return the columns that are inputs; DataError where one is named that is none of them."""
        seen = self._seen(table)
        head = f"{_head(table)}: data.numeric and data.categorical"
        check_columns(head, seen, (*self.numeric, *self.categorical))
        return seen

    def _features(
        self, table: Table, seen: Sequence[str], fitted: list[Encoding], train: Int[Tensor, " k"]
    ) -> tuple[Tensor, tuple[str, ...]]:
        """Return the inputs of all rows, and notes; the encoding, taken from the rows `train`, is put into `fitted`."""
        inputs, notes, encoding = self._encoded(table, seen, train)
        fitted.append(encoding)
        return inputs, notes

    def _encoded(
        self, table: Table, seen: Sequence[str], train: Int[Tensor, " k"]
    ) -> tuple[Float[Tensor, "n width"], tuple[str, ...], Encoding]:
        """Return the inputs of all rows, with what is fitted (scales, categories) taken from the rows `train`."""
        rows, marks = train.tolist(), self.missing_marks
        gaps = {name: gaps_in(table, name, marks) for name in seen}
        known = {name: [row for row in rows if not gap[row]] for name, gap in gaps.items()}
        dates = {name: order for name in seen if (order := self._dates(table, name, known[name]))}
        numbers = [name for name in seen if name in dates or self._is_numeric(table, name, known[name])]
        words = [name for name in seen if name not in numbers]
        refuse = self.missing == "refuse"
        if refuse:
            refuse_gaps(table, gaps)  # before what else may be wrong with a column that has some
        encoding = Encoding.fit(table, numbers, words, marks, train, refuse=refuse, dates=dates)
        days = [f"{name} ({order})" for name, order in dates.items()]
        notes = [
            *_listed("Numbers, standardised by the training rows", [name for name in numbers if name not in dates]),
            *_listed("Dates, as days, standardised by the training rows", days),
            *_listed("Categories", words),
        ]
        for name in numbers:
            if any(gaps[name]):
                notes.append(_of_gaps(table, name, gaps[name], "the mean of the training rows in its place"))
        for column in encoding.categories:
            notes += _of_categories(table, column, gaps[column.name])
        return encoding.inputs(table), tuple(notes), encoding

    def _is_numeric(self, table: Table, name: str, known: Sequence[int]) -> bool:
        """Return whether a column holds numbers, as it was said or by the values of the training rows."""
        if name in self.numeric or name in self.categorical:
            return name in self.numeric
        count = sum(_is_number(table.columns[name][row]) for row in known)
        return bool(known) and 2 * count >= len(known)

    def _dates(self, table: Table, name: str, known: Sequence[int]) -> DateOrder:
        """Return how a column's dates are written, by the values of the training rows; "" where it holds none."""
        return "" if name in self.categorical else date_order(table, name, known)


def _head(table: Table) -> str:
    return f"{table.path}, line 1" if table.unit == "line" else str(table.path)


def _is_number(value: str) -> bool:
    number = as_number(value)
    return number == number or value.strip().lower() in ("nan", "-nan", "+nan")


def _of_categories(table: Table, column: CategoryColumn, gap: Sequence[bool]) -> Iterator[str]:
    """Yield what has to be said of a column of categories."""
    name, values = column.name, table.columns[column.name]
    if any(gap):
        yield _of_gaps(table, name, gap, "a category of its own")
    known = set(column.values)
    unseen = [row for row, value in enumerate(values) if value not in known and not gap[row]]
    if unseen:
        few_values = few(sorted({repr(values[row]) for row in unseen}))
        yield (
            f"{name}: {len(unseen)} rows outside of the training split have a value that no training row has "
            f"({few_values}; the first in {table.line(unseen[0])}); all its columns are 0 there."
        )


def _of_gaps(table: Table, name: str, gap: Sequence[bool], what: str) -> str:
    first = f"the first in {table.line(list(gap).index(True))}"
    return f"{name}: missing in {sum(gap)} of {len(gap)} rows ({first}), {what}."


def _listed(what: str, names: Sequence[str]) -> Iterator[str]:
    if names:
        yield f"{what}: {', '.join(names)}."
