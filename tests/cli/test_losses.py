"""Loss matrices of a user's own: what is read, and what is said of files that are none."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

from steelyard._support._errors import DataError
from steelyard.cli.losses import read_losses


def save(path: Path, matrix: np.ndarray) -> Path:
    if path.suffix == ".npy":
        np.save(path, matrix)
    else:
        pandas.DataFrame(matrix, columns=[f"sample {i}" for i in range(matrix.shape[1])]).to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_a_matrix_is_read_as_it_was_written(tmp_path: Path, suffix: str) -> None:
    matrix = np.random.default_rng(0).random((3, 12))
    path = save(tmp_path / f"a{suffix}", matrix)
    assert torch.equal(read_losses(path), torch.from_numpy(matrix))
    assert torch.equal(read_losses(path, transpose=True), torch.from_numpy(matrix.T))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "absent.npy", "no file at"),
        (lambda folder: save(folder / "a.npy", np.zeros(3)), r"shape \(3,\)"),
        (lambda folder: save(folder / "a.npy", np.array([[0.0, np.nan]])), "row 0, column 1"),
        (lambda folder: save(folder / "a.parquet", np.array([[0.0], [np.inf]])), "row 1, column 'sample 0'"),
        (lambda folder: save(folder / "a.npy", np.array([[None, 1]], dtype=object)), "not a plain NumPy array"),
        (lambda folder: save(folder / "a.parquet", np.array([["x", "y"]])), "column 'sample 0' holds"),
        (lambda folder: folder / "a.csv", "no file at"),
    ],
)
def test_files_that_are_no_loss_matrix_are_refused(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_losses(make(tmp_path))


def test_other_formats_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("0,1\n")
    with pytest.raises(DataError, match=r"not '\.csv'"):
        read_losses(tmp_path / "a.csv")


COLUMNS: dict[str, Any] = {
    "Int64": pandas.array([0, 1, 1], dtype="Int64"),
    "UInt8": pandas.array([0, 1, 1], dtype="UInt8"),
    "Float32": pandas.array([0.0, 1.0, 1.0], dtype="Float32"),
    "boolean": pandas.array([False, True, True], dtype="boolean"),
    "bool": np.array([False, True, True]),
    "int8": np.array([0, 1, 1], dtype="int8"),
    "float32": np.array([0, 1, 1], dtype="float32"),
}


@pytest.mark.parametrize("first", COLUMNS)
@pytest.mark.parametrize("second", ["Int64", "float32", "boolean"])
def test_columns_of_any_numbers_are_read(tmp_path: Path, first: str, second: str) -> None:
    frame = pandas.DataFrame({"a": COLUMNS[first], "b": COLUMNS[second]})
    frame.to_parquet(tmp_path / "a.parquet")
    found = read_losses(tmp_path / "a.parquet")
    assert found.dtype == torch.float64
    assert found.tolist() == [[0, 0], [1, 1], [1, 1]]
    assert read_losses(tmp_path / "a.parquet", transpose=True).tolist() == [[0, 1, 1], [0, 1, 1]]


@pytest.mark.parametrize("kind", ["Int64", "Float64", "boolean"])
def test_a_missing_entry_is_named(tmp_path: Path, kind: str) -> None:
    frame = pandas.DataFrame({"a": [1.0, 1.0], "b": pandas.array([1, None], dtype=kind)})
    frame.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: 1 losses are missing or .* the first in row 1, column 'b'"):
        read_losses(tmp_path / "a.parquet")


def test_a_wide_matrix_is_mapped_and_never_copied_whole(tmp_path: Path) -> None:
    path = tmp_path / "wide.npy"
    wide = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(4, 2_000_000))
    wide[:, ::7] = 1
    wide.flush()
    tracemalloc.start()
    losses = read_losses(path)
    taken = tracemalloc.get_traced_memory()[1]  # NumPy says what it takes; torch's tensors here share the map
    tracemalloc.stop()
    assert losses.dtype == torch.float32
    assert taken < wide.nbytes / 4 + 2**20
    losses.zero_()
    del wide
    assert np.load(path)[0, :8].tolist() == [1, 0, 0, 0, 0, 0, 0, 1]  # nothing is written to the file
