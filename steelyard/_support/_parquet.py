"""Read Parquet files that other people made. (Imports pandas and pyarrow: import this module where it is used.)"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pandas
import pyarrow

from steelyard._support._files import open_file

__all__ = ["read_errors", "read_parquet"]


def read_parquet(path: str | os.PathLike[str]) -> pandas.DataFrame:
    """Return the table in a Parquet file.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is damaged, or holds what pyarrow does not read.
    """
    with read_errors(), open_file(path) as file:
        return pandas.read_parquet(file)


@contextmanager
def read_errors() -> Iterator[None]:
    """Turn what pyarrow raises of a file into ValueError: not all of its errors are (found by tests/fuzz)."""
    try:
        yield
    except (pyarrow.ArrowException, NotImplementedError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
