"""A partial run does not replace the tables of a whole one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steelyard._support._errors import UserError
from studies._kept import check_no_fewer
from studies.data_cleaning.__main__ import main
from studies.data_cleaning.study import METHODS, SHARES


@pytest.mark.parametrize(("name", "text"), [("cases.json", "[1, 2]"), ("rounds.csv", "a,b\n1,2\n3,4\n")])
def test_rows_are_counted(name: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / name
    check_no_fewer(file, 0)
    file.write_text(text, encoding="utf-8")
    check_no_fewer(file, 2)
    with pytest.raises(UserError, match=f"{name} has 2 rows and this run 1: give another folder by --out"):
        check_no_fewer(file, 1)


def test_a_part_of_the_study_leaves_the_tables_of_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    method = next(iter(METHODS))
    whole = [{"method": method, "share": share, "seed": seed} for share in SHARES for seed in (1, 2)]
    out, runs = tmp_path / "out", tmp_path / "runs"
    out.mkdir()
    runs.mkdir()
    (out / "cases.json").write_text(json.dumps(whole), encoding="utf-8")
    (runs / "part.json").write_text(json.dumps(whole[:1]), encoding="utf-8")
    assert main(["--tabulate", "--out", str(out), "--runs", str(runs)]) == 2
    assert "cases.json has 6 rows and this run 1" in " ".join(capsys.readouterr().err.split())
    assert json.loads((out / "cases.json").read_text(encoding="utf-8")) == whole
    assert [path.name for path in out.iterdir()] == ["cases.json"]


def test_a_share_that_the_study_has_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--shares", "1.5", "--out", str(tmp_path)]) == 2
    assert "unknown share 1.5; there are 0.5, 0.7, 0.9" in " ".join(capsys.readouterr().err.split())
