"""Every command that writes: what lies there is not lost, no link is followed, and one process at a time writes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from steelyard._support._outputs import holding
from steelyard.cli import main
from tests.support.own import patients

SHORT = ("--set", "method.training.steps=4", "--set", "model.hidden=[8]")
OWN = ("patients.csv", "--target", "ill", "--id", "patient", "--epochs", "1")
ACTIVE = ("digits", "--selectors", "rand", "--seeds", "0", "--noises", "none", "--set", "schedule.rounds=1")
COMMANDS = {
    "weigh": OWN,
    "suspects": (*OWN, "--no-check"),
    "bounds": ("--losses", "losses.npy", "--loss-range", "1", "--s", "4", "--draws", "5"),
    "compare": ("done/seed0",),
    "tune": ("coloured_digits/irmv1", "--trials", "2", *SHORT),
    "active": ACTIVE,
    "run": ("coloured_digits/erm", *SHORT),
    "demo": ("--seeds", "0"),
}
"""Words of each command but for its ``--out``, a folder."""
WRITTEN = [
    *(("weigh", name) for name in ("weights.csv", "model.safetensors", "plain.safetensors", "page.html")),
    *(("suspects", name) for name in ("suspects.csv", "page.html", "checkpoint.safetensors")),
    *(("bounds", name) for name in ("terms.csv", "summary.csv")),
    *(("compare", name) for name in ("comparison.md", "summary.json", "coloured_digits.svg")),
    *(("tune", name) for name in ("trials.md", "chosen.toml")),
    *(("active", name) for name in ("README.md", "summary.json", "none/rand/seed0/config.json")),
    ("run", "seed0/config.json"),
    *(("demo", name) for name in ("comparison.md", "report.html")),
]
INSIDE = {
    "weigh": ("runs", "runs/self_cleaning", "runs/plain/seed0"),
    "tune": ("trial00", "trial01/seed0"),
    "active": ("none", "none/rand", "none/rand/seed0"),
    "run": ("seed0",),
    "demo": ("coloured_digits", "coloured_digits/erm/seed0"),
}
"""Folders that a command makes in its own."""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("given")
    patients(160).drop(columns=["part"]).to_csv(place / "patients.csv", index=False)
    np.save(place / "losses.npy", np.random.default_rng(0).random((2, 40)))
    assert main(["run", "coloured_digits/erm", *SHORT, "--out", str(place / "done")]) == 0
    return place


@pytest.fixture(autouse=True)
def beside(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(given, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    return Said(capsys)


class Said:
    """What a command that is refused says: one line."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def by(self, *words: str) -> str:
        self.capsys.readouterr()
        assert main(list(words)) == 2
        line = self.capsys.readouterr().err
        assert line.count("\n") == 1
        return line


def mine(path: str) -> Path:
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("mine")
    return place


@pytest.mark.parametrize(("command", "name"), WRITTEN)
def test_what_lies_there_is_not_replaced_unasked(command: str, name: str, said: Said) -> None:
    place = mine(f"out/{name}")
    line = said.by(command, *COMMANDS[command], "--out", "out")
    assert "out/" in line
    assert "or remove it" in line if command == "demo" else "--overwrite" in line
    assert place.read_text() == "mine"
    assert [path for path in Path("out").rglob("*") if path.is_file()] == [place]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_link_is_written_through(command: str, said: Said) -> None:
    Path("elsewhere").mkdir()
    Path("out").symlink_to("elsewhere")
    for more in ((), ("--overwrite",)) if command != "demo" else ((),):
        line = said.by(command, *COMMANDS[command], "--out", "out", *more)
        assert "out is a symbolic link; name the folder that it leads to, or remove it" in line
    assert not list(Path("elsewhere").iterdir())


@pytest.mark.parametrize(("command", "inner"), [(command, name) for command, names in INSIDE.items() for name in names])
def test_no_link_inside_is_written_through(command: str, inner: str, said: Said) -> None:
    Path("elsewhere").mkdir()
    Path("out", inner).parent.mkdir(parents=True)
    Path("out", inner).symlink_to(Path("elsewhere").resolve())
    line = said.by(command, *COMMANDS[command], "--out", "out")
    assert f"out/{inner} is a symbolic link; name the folder that it leads to, or remove it" in line
    assert not list(Path("elsewhere").iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_one_process_at_a_time_writes(command: str, said: Said) -> None:
    with holding(Path("out/seed0" if command == "run" else "out")):
        line = said.by(command, *COMMANDS[command], "--out", "out")
    assert f"is in use by process {os.getpid()} on " in line
    assert "wait for it, or give another --out" in line
    assert not Path("out").exists() or not list(Path("out").iterdir())


@pytest.mark.parametrize("command", ["weigh", "suspects", "tune", "active"])
def test_resuming_replaces_nothing_of_anothers(command: str, said: Said) -> None:
    name = {"weigh": "page.html", "suspects": "page.html", "tune": "chosen.toml", "active": "README.md"}[command]
    place = mine(f"out/{name}")
    line = said.by(command, *COMMANDS[command], "--out", "out", "--resume")
    assert f"out/{name} is there already, and nothing that could be resumed" in line
    assert place.read_text() == "mine"


@pytest.mark.parametrize(
    ("command", "name"), [("bounds", "terms.csv"), ("compare", "comparison.md"), ("suspects", "page.html")]
)
def test_what_lies_there_is_replaced_where_that_is_asked(command: str, name: str) -> None:
    place = mine(f"out/{name}")
    assert main([command, *COMMANDS[command], "--out", "out", "--overwrite"]) == 0
    assert place.read_text() != "mine"
    assert not list(Path("out").glob("*.lock"))


def test_a_weighing_is_gone_on_with_or_replaced_where_that_is_asked(said: Said) -> None:
    words = ["weigh", *COMMANDS["weigh"], "--out", "out"]
    assert main(words) == 0
    before = Path("out/weights.csv").read_bytes()
    assert "out/weights.csv is there already; give another --out, --resume to go on, or --overwrite" in said.by(*words)
    assert main([*words, "--resume"]) == 0
    assert Path("out/weights.csv").read_bytes() == before
    shutil.rmtree("out/runs")
    said.by(*words, "--resume")
    assert main([*words, "--seeds", "1", "--overwrite"]) == 0
    assert Path("out/weights.csv").read_bytes() != before


def test_a_search_and_its_tables_are_gone_on_with() -> None:
    words = ["tune", *COMMANDS["tune"], "--out", "out"]
    assert main(words) == 0
    for more in ("--resume", "--collect", "--overwrite"):
        assert main([*words, more]) == 0


def test_tables_of_active_learning_lie_where_they_are_asked_for(said: Said) -> None:
    place = mine("tables/README.md")
    line = said.by("active", *COMMANDS["active"], "--out", "out", "--tables", "tables")
    assert "tables/README.md is there already" in line
    assert place.read_text() == "mine"
    assert not Path("out").exists()


def test_bounds_of_two_files_go_to_two_folders(said: Said) -> None:
    shutil.copy("losses.npy", "others.npy")
    words = COMMANDS["bounds"]
    assert main(["bounds", *words]) == 0
    assert main(["bounds", *(word.replace("losses.npy", "others.npy") for word in words)]) == 0
    assert {path.name for path in Path("runs/bounds").iterdir()} == {"losses", "others"}
    assert "runs/bounds/losses/terms.csv is there already" in said.by("bounds", *words)


def test_a_page_is_not_replaced_unasked(said: Said) -> None:
    place = mine("page.html")
    words = ["report", "done/seed0", "--out"]
    assert "page.html is there already; give another --out, or --overwrite to replace it" in said.by(
        *words, "page.html"
    )
    assert place.read_text() == "mine"
    Path("folder").mkdir()
    Path("link").symlink_to("folder")
    for more in ((), ("--overwrite",)):
        assert "link is a symbolic link to a folder; name a file in that folder" in said.by(*words, "link", *more)
    assert Path("link").is_symlink()
    assert main([*words, "page.html", "--overwrite"]) == 0
    assert main([*words, "link/page.html"]) == 0
    assert [path.name for path in Path("folder").iterdir()] == ["page.html"]


def test_an_earlier_demo_is_told_from_what_else_lies_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steelyard.cli.runs.DEMO", ("coloured_digits/erm",))
    monkeypatch.setattr("steelyard.experiments.runs.demo.load_recipe", lambda name, seed: _shortened(name, seed))
    for _ in range(2):
        assert main(["demo", "--seeds", "0", "--out", "out"]) == 0
    Path("out/demo.json").unlink()
    assert main(["demo", "--seeds", "0", "--out", "out"]) == 2


def _shortened(name: str, seed: int) -> object:
    from steelyard.experiments.runs.recipe import load_recipe

    return load_recipe(name, ("method.training.steps=4", "model.hidden=[8]"), seed)
