"""Read Parquet files that other people made."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping

import pandas
import pyarrow
import pyarrow.parquet
from pyarrow import types

from steelyard._support._files import open_file
from steelyard._support._parquet import read_errors, read_parquet
from steelyard._support._text import few

__all__ = ["MOST_ROWS", "read_columns", "read_parquet", "read_texts"]

MOST_ROWS = 1 << 25  # three times the largest run that we know of; a megabyte of Parquet may say billions
_KINDS: Mapping[str, Callable[[pyarrow.DataType], bool]] = {
    "whole numbers": types.is_integer,
    "numbers": lambda kind: types.is_floating(kind) or types.is_integer(kind),
    "true and false": types.is_boolean,
    "words": lambda kind: types.is_string(kind) or types.is_large_string(kind),
}
_AS_TEXT = (
    *(types.is_integer, types.is_floating, types.is_boolean, types.is_string, types.is_large_string, types.is_null),
    *(types.is_decimal, types.is_date, types.is_timestamp),
)


def read_columns(
    path: str | os.PathLike[str], needed: Mapping[str, str], known: Mapping[str, str] | None = None
) -> pandas.DataFrame:
    """Return the columns `needed` of a Parquet file and those of `known` that it has; no other is read.

    Args:
        path: the file.
        needed: name -> "whole numbers", "numbers", "true and false" or "words".
        known: likewise.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is damaged, has no rows or too many, lacks a column, has one twice or of another kind, or a cell
            is empty.
    """
    kinds = {**needed, **(known or {})}
    with read_errors(), open_file(path) as opened:
        file = pyarrow.parquet.ParquetFile(opened)
        names, rows = list(file.schema_arrow.names), file.metadata.num_rows
        if missing := [name for name in needed if name not in names]:
            raise ValueError(f"it has no column {missing[0]!r} (it needs {', '.join(needed)})")
        if not 0 < rows <= MOST_ROWS:
            raise ValueError(f"it has {rows} rows, from 1 to {MOST_ROWS} are read")
        wanted = [name for name in names if name in kinds]
        for name in wanted:
            if wanted.count(name) > 1:
                raise ValueError(f"it has the column {name!r} twice")
            kind = file.schema_arrow.field(name).type
            if not _KINDS[kinds[name]](kind):
                raise ValueError(f"the column {name!r} must hold {kinds[name]}, it holds {kind}")
        table = file.read(columns=wanted)
        if empty := [name for name in wanted if table[name].null_count]:
            raise ValueError(f"empty cells in the columns {few(empty)}")
        return table.to_pandas(ignore_metadata=True)


def read_texts(data: bytes) -> dict[str, list[str]]:
    """Return all columns of a Parquet file as text, "" for an empty cell.

    Raises:
        ValueError: it is damaged, has too many rows, has a column twice, or one that is neither numbers nor words.
    """
    with read_errors():
        file = pyarrow.parquet.ParquetFile(io.BytesIO(data))
        names, rows = list(file.schema_arrow.names), file.metadata.num_rows
        if rows > MOST_ROWS:
            raise ValueError(f"it has {rows} rows, up to {MOST_ROWS} are read")
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"it has the column {name!r} twice")
            kind = file.schema_arrow.field(name).type
            kind = kind.value_type if types.is_dictionary(kind) else kind
            if not any(is_kind(kind) for is_kind in _AS_TEXT):
                raise ValueError(
                    f"the column {name!r} holds {kind}, neither numbers nor words; write the file without it"
                )
        table = file.read()
        return {name: ["" if x is None else str(x) for x in table[name].to_pylist()] for name in names}
