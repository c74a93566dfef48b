"""A stranger's run folder: what a command makes of it is an answer or an error of ours, in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from steelyard.cli import main
from tests.fuzz.foreign import made, tried

SUITE = (0, 1, 2, 3, 5, 8, 9, 13, 18, 19, 20, 21, 24, 25)  # the rest of the first 200 by hand: they take minutes


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return made(tmp_path_factory.mktemp("foreign"))


@pytest.mark.parametrize("case", [c if c in SUITE else pytest.param(c, marks=pytest.mark.slow) for c in range(200)])
def test_a_foreign_folder_ends_in_an_answer_or_an_error_of_ours(
    case: int, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    what, statuses = tried(case, runs, tmp_path)
    said = capsys.readouterr()
    assert set(statuses) <= {0, 2}, what
    assert not any(letter in said.out + said.err for letter in "\x07\x1b\x9b\u202e"), what


@pytest.mark.parametrize("case", range(12))
def test_what_was_damaged_is_named(case: int, runs: dict[str, Path], tmp_path: Path) -> None:
    """An error by report is an error by compare, but for the files that a comparison does not need."""
    what, statuses = tried(case, runs, tmp_path)
    if len(statuses) == 2 and statuses[0] != statuses[1]:
        assert what.endswith(("result.parquet", "prior.safetensors")), what
        assert statuses == [2, 0], what


def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_the_copies_themselves_are_read(runs: dict[str, Path], tmp_path: Path) -> None:
    """Otherwise all that is tried would fail at the door."""
    for name in ("erm", "maple"):
        both = [str(runs[name] / f"seed{seed}") for seed in (1, 2)]
        assert main(["report", *both, "--out", str(tmp_path / f"{name}.html")]) == 0
        assert main(["compare", *both, "--out", str(tmp_path / name)]) == 0


def test_an_error_names_the_file_and_a_remedy(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = copied(runs["maple"] / "seed1", tmp_path)
    config = json.loads((place / "config.json").read_text())
    config["recipe"]["train_floor"] = 10**400
    (place / "config.json").write_text(json.dumps(config))
    assert main(["compare", str(place)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "config.json cannot be read" in said
    assert "train_floor is a number that is too large" in said
    assert "put the file back" in said
    assert len(said) < 500
