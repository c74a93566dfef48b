"""Tables of one's own, from CSV, Parquet or npz, as text: one way to read their values and one kind of message."""

from __future__ import annotations

import io
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from steelyard._support._text import few
from steelyard.experiments.data.parquet import MOST_ROWS, read_texts
from steelyard.experiments.data.table import Table, read_blanks, read_csv
from steelyard.experiments.errors import DataError

__all__ = ["as_texts", "in_columns", "read_any", "read_npy", "read_npz"]

_MOST_BYTES = 1 << 35  # of an archive's arrays once unpacked; a megabyte may say more
# What NumPy raises of damaged files (found by tests/fuzz).
_UNREADABLE = (
    *(OSError, ValueError, EOFError, SyntaxError, TypeError, OverflowError, MemoryError, LookupError, RuntimeError),
    *(NotImplementedError, zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)


def read_any(path: Path, data: bytes, separator: str = ",") -> Table:
    """Return all columns of a table, blanks around their names left out; lines are rows (from 0) where it is no text.

    Args:
        path: says the format: .parquet (.pq), .npz, and all else is text.
        data: what the file holds.
        separator: between the values of a line of text; " " is any number of blanks.

    Raises:
        DataError: it is empty, damaged, holds what is no column of numbers or words, or two columns of one name.
    """
    table = _as_it_stands(path, data, separator)
    names = [name.strip() for name in table.columns]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{path}: there are two columns {twice!r}, but for blanks around the name; rename one of them")
    return replace(table, columns=dict(zip(names, table.columns.values(), strict=True)))


def _as_it_stands(path: Path, data: bytes, separator: str) -> Table:
    columns: Mapping[str, Sequence[str]]
    if path.suffix in (".parquet", ".pq"):
        try:
            columns = read_texts(data)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    elif path.suffix == ".npz":
        columns = in_columns(path, read_npz(path, data))
    else:
        return _read_text(path, data, separator)
    rows = len(next(iter(columns.values()), ()))
    if not rows:
        raise DataError(f"{path} has no rows")
    return Table(path, columns, range(rows), "row")


def _read_text(path: Path, data: bytes, separator: str) -> Table:
    if separator == " ":
        return read_blanks(path, data)
    table = read_csv(path, None, separator=separator, data=data)
    (head, *more) = table.columns
    if not more:
        other = next((sign for sign in (";", "\t", "|") if sign in head), None)
        written = "\\t" if other == "\t" else other
        hint = f'; are the values separated by {other!r}? Then set data.separator = "{written}"' if other else ""
        raise DataError(f"{path}, line 1: there is one column alone, {head!r}{hint}")
    return table


def read_npz(path: Path, data: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz archive, no pickle among them; DataError where that cannot be."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > _MOST_BYTES:
            raise ValueError(f"its arrays would take {size} bytes, up to {_MOST_BYTES} are read")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name]) for name in arrays.files}
    except _UNREADABLE as error:
        raise DataError(f"{path} cannot be read as an archive of plain NumPy arrays: {error}") from error


def read_npy(path: Path, data: bytes) -> np.ndarray:
    """Return the array of an .npy file, no pickle; DataError where that cannot be."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a header as Python 2 wrote it
            array = np.load(io.BytesIO(data), allow_pickle=False)
    except _UNREADABLE as error:
        raise DataError(f"{path} cannot be read as a plain NumPy array: {error}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} is an archive of arrays; name it .npz")
    return array


def in_columns(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, Sequence[str]]:
    """Return arrays as columns of text; one of two axes is a column for each of its own, called name.0, name.1, ..."""
    columns = dict(_columns(path, arrays))
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        told = few(f"{name}: {length}" for name, length in lengths.items())
        raise DataError(f"{path}: its arrays must have as many rows, they have {told}")
    return columns


def _columns(path: Path, arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Sequence[str]]]:
    for name, array in arrays.items():
        if array.ndim == 1:
            yield name, as_texts(path, name, array)
        elif array.ndim == 2:
            yield from ((f"{name}.{k}", as_texts(path, name, array[:, k])) for k in range(array.shape[1]))
        else:
            raise DataError(f"{path}: the array {name!r} has the shape {array.shape}; a column has one axis")


def as_texts(path: Path, name: str, array: np.ndarray) -> Sequence[str]:
    """Return an array ``(n,)`` of numbers, booleans or words as text; DataError for another kind."""
    if array.dtype.kind not in "fiubUS" or array.ndim != 1 or len(array) > MOST_ROWS:
        raise DataError(
            f"{path}: the array {name!r} holds {array.dtype} of shape {array.shape}; a column holds numbers, booleans "
            f"or words, ({MOST_ROWS},) at most"
        )
    try:
        values = np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array
        return [str(value) for value in values.tolist()]
    except (UnicodeDecodeError, UnicodeEncodeError, ValueError) as error:
        raise DataError(f"{path}: the array {name!r} holds words that are not UTF-8: {error}") from error
