"""Read Parquet files that other people made."""

from __future__ import annotations

import os

import pandas
import pyarrow

__all__ = ["read_parquet"]


def read_parquet(path: str | os.PathLike[str]) -> pandas.DataFrame:
    """Return the table in a Parquet file.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is damaged, or holds what pyarrow does not read.
    """
    try:
        return pandas.read_parquet(path)
    except (pyarrow.ArrowException, NotImplementedError, KeyError, TypeError, OverflowError) as error:
        # Not all of pyarrow's errors are ValueErrors (found by tests/fuzz: a type of integers that it lacks).
        raise ValueError(f"{type(error).__name__}: {error}") from error
