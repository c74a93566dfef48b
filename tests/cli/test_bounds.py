"""`steelyard bounds --losses`: what it writes and what it says."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas
import pytest

from steelyard.cli import main
from steelyard.theory import complexity
from tests.cli.test_losses import save


def answered(folder: Path, matrix: np.ndarray, *options: str, kind: str = ".npy") -> int:
    path = save(folder / f"losses{kind}", matrix)
    return main(["bounds", "--losses", str(path), "--out", str(folder / "out"), "--overwrite", *options])


def tables(folder: Path) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    terms, summary = (pandas.read_csv(folder / "out" / f"{name}.csv") for name in ("terms", "summary"))
    return terms, summary


SMALL = ("--s", "4", "--q", "2", "--loss-range", "1", "--draws", "20")


@pytest.mark.parametrize("kind", [".npy", ".parquet"])
def test_the_tables_hold_every_term_of_every_hypothesis(tmp_path: Path, kind: str) -> None:
    matrix = np.random.default_rng(0).random((3, 40))
    clean = save(tmp_path / f"clean{kind}", np.clip(matrix - 0.1, 0, 1))
    assert answered(tmp_path, matrix, *SMALL, "--clean", str(clean), "--fixed-before-data", kind=kind) == 0
    terms, summary = tables(tmp_path)
    assert list(terms.columns) == ["hypothesis", "term", "equation", "value", "nature", "note", "certificate"]
    assert list(summary.columns) == ["hypothesis", "mean loss", "L_q", "bound", "certificate", "sentence"]
    assert list(terms.groupby("hypothesis").size()) == [7, 7, 7]
    assert summary["mean loss"].to_numpy() == pytest.approx(matrix.mean(1), rel=1e-5)  # written to six digits
    right = terms[terms["term"] == "right-hand side"]["value"]
    assert summary["bound"].to_numpy() == pytest.approx(right.to_numpy())
    assert summary["certificate"].all()


def test_nothing_is_written_where_a_condition_is_not_met(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answered(tmp_path, np.zeros((2, 8)), "--loss-range", "1") == 2
    assert "Theorem 1 needs s <= n: a batch of s = 16 cannot be drawn" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", ">f4", "u1", "u2", "i4", ">i8", "u8", "?", "longdouble"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_matrices_of_any_numbers_have_the_same_terms(tmp_path: Path, kind: str, order: str) -> None:
    matrix = np.random.default_rng(0).integers(0, 2, (3, 30))
    assert answered(tmp_path, matrix.astype(np.float64), *SMALL) == 0
    expected = (tmp_path / "out" / "terms.csv").read_bytes()
    assert answered(tmp_path, np.asarray(matrix.astype(kind), order=order), *SMALL) == 0  # type: ignore[call-overload]
    assert (tmp_path / "out" / "terms.csv").read_bytes() == expected
    turned = np.asarray(matrix.T.astype(kind), order=order)  # type: ignore[call-overload]
    assert answered(tmp_path, turned, *SMALL, "--transpose") == 0
    assert (tmp_path / "out" / "terms.csv").read_bytes() == expected


def test_a_wide_matrix_is_read_some_columns_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = np.zeros((4, 2_000_000), dtype=np.float32)
    wide[:, ::7] = 1
    monkeypatch.setattr(complexity, "_WIDE", 1 << 16)
    assert answered(tmp_path, wide, "--s", "4", "--q", "4", "--loss-range", "1", "--draws", "2") == 0
    assert tables(tmp_path)[1]["mean loss"].to_numpy() == pytest.approx([1 / 7] * 4, rel=1e-5)


def test_samples_in_the_rows_are_suspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tall = np.random.default_rng(0).random((40, 20))
    assert answered(tmp_path, tall, *SMALL) == 0
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "hypotheses," in line]
    assert said.startswith("The losses have 40 rows, which are read as hypotheses, and 20 columns, read as samples")
    assert said.endswith("give --transpose")
    assert answered(tmp_path, tall, *SMALL, "--transpose") == 0
    assert "hypotheses," not in capsys.readouterr().out
    assert answered(tmp_path, np.zeros((500, 3)), "--loss-range", "1") == 2
    said = capsys.readouterr().err.strip()
    assert "s = 16 cannot be drawn from n = 3 samples. The losses have 500 rows" in said
    assert said.endswith("give --transpose")
    assert answered(tmp_path, np.zeros((2, 3)), "--loss-range", "1") == 2
    assert capsys.readouterr().err.endswith("cannot be drawn from n = 3 samples\n")


def test_columns_of_the_printed_table_begin_below_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answered(tmp_path, np.random.default_rng(0).random((12, 40)), *SMALL) == 0
    head, *rows = capsys.readouterr().out.splitlines()[1:14]
    begins = [head.index(name) for name in ("hypothesis", "mean loss", "L_q", "bound", "certificate")]
    assert [row.split()[0] for row in rows] == [str(place) for place in range(12)]
    assert all(row[begin] != " " and (begin == 0 or row[begin - 1] == " ") for row in rows for begin in begins)


def test_a_parquet_file_without_its_readers_names_the_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "losses.parquet", np.zeros((2, 30)))
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert main(["bounds", "--losses", str(path), "--loss-range", "1", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "needs pandas, which is not installed: pip install 'steelyard[experiments]'" in said
