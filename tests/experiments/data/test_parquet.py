"""Parquet files: read, or an error of two kinds."""

from __future__ import annotations

from pathlib import Path

import pandas
import pyarrow
import pytest

from steelyard.experiments.data import parquet
from steelyard.experiments.data.parquet import read_parquet


def test_a_table_is_read(tmp_path: Path) -> None:
    table = pandas.DataFrame({"a": [1.0, 2.0]})
    table.to_parquet(tmp_path / "t.parquet")
    pandas.testing.assert_frame_equal(read_parquet(tmp_path / "t.parquet"), table)


def test_what_cannot_be_read_is_an_os_error_or_a_value_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        read_parquet(tmp_path / "none.parquet")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"."):
        read_parquet(tmp_path / "t.parquet")

    def lacking(path: Path) -> None:
        raise pyarrow.lib.ArrowNotImplementedError("Integers with less than 8 bits not implemented")

    monkeypatch.setattr(parquet.pandas, "read_parquet", lacking)  # a file that has them is a fuzzer's
    with pytest.raises(ValueError, match="ArrowNotImplementedError: Integers with less than 8 bits"):
        read_parquet(tmp_path / "t.parquet")
