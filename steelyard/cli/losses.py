"""A loss matrix of the user's own: hypotheses x samples, as `.npy` or Parquet."""

from __future__ import annotations

import tokenize
import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from steelyard._support._errors import DataError
from steelyard._support._packages import EXPERIMENTS, needed_by

__all__ = ["read_losses", "turned_hint"]

_SHARED = {np.dtype(kind).str for kind in ("f4", "f8", "i1", "i2", "i4", "i8", "u1")}  # torch has all of these whole

# What NumPy raises on damaged headers, which it parses as Python (found by tests/fuzz).
_UNREADABLE = (OSError, ValueError, EOFError, SyntaxError, TypeError, OverflowError, MemoryError, tokenize.TokenError)


def read_losses(path: Path, transpose: bool = False) -> Shaped[Tensor, "m n"]:
    """Read a loss matrix: `.npy` (no pickles) or `.parquet`, a row for each hypothesis and a column for each sample.

    An `.npy` file is mapped, not loaded: its numbers keep their type and are read when they are looked at.

    Args:
        path: of the file.
        transpose: its rows are samples and its columns hypotheses.

    Raises:
        DataError: no such file, another format, not a matrix of real numbers, or an entry that is missing or not
            finite; the message names the file, the row and the column.
        MissingPackage: a Parquet file, without what reads it.
    """
    if not path.is_file():
        raise DataError(f"losses: no file at {path}")
    names: list[str] | None = None
    if path.suffix == ".npy":
        array = _mapped(path)
    elif path.suffix in (".parquet", ".pq"):
        array, names = _columns(path)
    else:
        raise DataError(f"{path}: losses are read from .npy or .parquet files, not {path.suffix!r}")
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiub":
        raise DataError(
            f"{path} holds {array.dtype} of shape {array.shape}; "
            "losses must be a matrix of numbers, hypotheses x samples"
        )
    _check_finite(path, array, names)
    if array.dtype.str not in _SHARED:
        array = array.astype(np.float64)
    matrix = torch.from_numpy(array)
    return matrix.T if transpose else matrix


def turned_hint(m: int, n: int) -> str:
    """Return a hint for a matrix that has more hypotheses than samples."""
    if m <= n:
        return ""
    return (
        f"The losses have {m} rows, which are read as hypotheses, and {n} columns, read as samples: if the rows are "
        "samples, give --transpose"
    )


def _mapped(path: Path) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a header as Python 2 wrote it
            # Writable for torch, which warns of what is not; what would be written is of this process alone.
            array = np.load(path, mmap_mode="c", allow_pickle=False)
    except _UNREADABLE as error:
        raise DataError(f"{path} is not a plain NumPy array: {error}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} is an archive of arrays; give one array")
    return array


def _columns(path: Path) -> tuple[np.ndarray, list[str]]:
    """Return the columns of a Parquet file as a matrix, with NaN where an entry is missing, and their names."""
    with needed_by(f"{path.name}, a Parquet file (.npy needs no extra),", EXPERIMENTS):
        import pandas

        from steelyard._support._parquet import read_parquet
    try:
        frame = read_parquet(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error
    names = [str(name) for name in frame.columns]
    for name, kind in zip(names, frame.dtypes, strict=True):
        if not (pandas.api.types.is_numeric_dtype(kind) or pandas.api.types.is_bool_dtype(kind)):
            raise DataError(f"{path}: column {name!r} holds {kind}, losses must be numbers")
    array = np.empty(frame.shape)
    for place in range(len(names)):  # one by one: a nullable column is no array of numbers by itself
        array[:, place] = frame.iloc[:, place].to_numpy(dtype=np.float64, na_value=np.nan)
    return array, names


def _check_finite(path: Path, array: np.ndarray, names: list[str] | None) -> None:
    if array.dtype.kind != "f":
        return
    bad = np.array([np.count_nonzero(~np.isfinite(row)) for row in array])
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        column = int(np.flatnonzero(~np.isfinite(array[row]))[0])
        where = column if names is None else repr(names[column])
        raise DataError(f"{path}: {bad.sum()} losses are missing or not finite, the first in row {row}, column {where}")
