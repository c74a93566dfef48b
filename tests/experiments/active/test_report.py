"""Tables, pictures and the command: a grid of tiny runs from the command line to the files."""

from __future__ import annotations

import json
import shlex
import signal
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from steelyard.cli import main
from steelyard.experiments.active import tables
from steelyard.experiments.active.grid import Grid
from steelyard.experiments.active.report import write_active_report
from steelyard.experiments.active.run import read_active_run
from steelyard.experiments.active.view import View
from steelyard.experiments.errors import RunError, UserError

TINY = ["--set", "data.samples=60", "--set", "noise.share=0.5", "--set", "epochs.epochs=2"]
TINY += ["--set", "schedule.initial=20", "--set", "schedule.per_round=10", "--set", "schedule.rounds=2"]
TUNE = ["--set", "fine_tuning.samples=16", "--set", "fine_tuning.epochs.epochs=1"]
TUNE += ["--set", "fine_tuning.confidence=0.2"]


def test_a_grid_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = ["--selectors", "rand", "badge", "--noises", "noisy_blank", "noisy_class", "--fine-tuning", "on"]
    out = ["--out", str(tmp_path / "runs"), "--tables", str(tmp_path / "tables")]
    command = ["active", "digits", *TINY, *TUNE, *grid, "--seeds", "0", "1", *out]
    assert main(command) == 0
    assert "BADGE + FT" in capsys.readouterr().out
    places = sorted(path.parent.relative_to(tmp_path / "runs") for path in tmp_path.glob("runs/*/*/*/config.json"))
    assert len(places) == 2 * 2 * 2
    assert Path("noisy_class/badge_ft/seed1") in places
    rows = json.loads((tmp_path / "tables" / "summary.json").read_text())
    accuracy = [row for row in rows if row["metric"] == "test"]
    assert len(accuracy) == 4
    assert all(row["seeds"] == [0, 1] and row["selection"] == "last" for row in rows)
    runs = [read_active_run(tmp_path / "runs" / "noisy_blank" / "rand_ft" / f"seed{seed}") for seed in (0, 1)]
    last = [run.history[-1]["test"] for run in runs]
    row = next(row for row in accuracy if row["method"] == "RAND + FT (noisy_blank)")
    assert row["mean"] == pytest.approx(sum(last) / 2, abs=1e-6)
    assert row["std"] == pytest.approx(abs(last[0] - last[1]) / 2**0.5, abs=1e-6)
    page = (tmp_path / "tables" / "README.md").read_text()
    assert "steelyard active digits --set data.samples=60" in page
    assert "| RAND + FT |" in page
    rounds = (tmp_path / "tables" / "rounds.csv").read_text().splitlines()
    assert len(rounds) == 1 + 8 * 3
    assert ElementTree.fromstring((tmp_path / "tables" / "curves.svg").read_text()).tag.endswith("svg")
    # what is there is not run again, and not overwritten
    assert main(command) == 2
    assert main([*command, "--resume"]) == 0


def test_an_out_that_is_a_file_is_said_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["active", "digits", *TINY, "--out", str(tmp_path / "file")]) == 2
    captured = capsys.readouterr()
    assert f"--out {tmp_path}/file cannot be written" in captured.err
    assert not captured.out


def test_a_seed_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--seeds names 3 twice"):
        Grid.of("digits", (), tmp_path, seeds=(3, 1, 3))


def test_no_noise_beside_a_recipe_whose_noise_has_fields(tmp_path: Path) -> None:
    grid = Grid.of("digits", (), tmp_path, noises=["none", "noisy_class", "noisy_blank"])
    noises = [plan.recipe.noise for plan in grid.planned]
    assert [noise.name for noise in noises] == ["none", "noisy_class", "noisy_blank"]
    assert [noise.share for noise in noises[1:]] == [0.8, 0.8]  # the recipe's, of whatever kind
    assert [plan.directory.relative_to(tmp_path).parts[0] for plan in grid.planned] == [noise.name for noise in noises]


def test_compare_says_what_it_does_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = [*TINY[:-1], "schedule.rounds=1"]
    assert main(["active", "digits", *few, "--seeds", "0", "--out", str(tmp_path)]) == 0
    place = next(tmp_path.rglob("state.safetensors")).parent
    for command in ("compare", "report"):
        assert main([command, str(place)]) == 2
        assert "holds a run of active learning" in capsys.readouterr().err


def test_fine_tuning_both_ways_runs_each_method_twice(tmp_path: Path) -> None:
    overrides = [word for word in (*TINY, *TUNE) if word != "--set"]
    grid = Grid.of("digits", overrides, tmp_path, fine_tuning="both")
    assert [plan.recipe.label for plan in grid.planned] == ["LHD", "LHD + FT"]
    assert grid.command.endswith("--fine-tuning both")


def test_an_interrupted_command_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> View:
        signal.raise_signal(signal.SIGINT)
        return View(*arguments, **options)

    command = ["active", "digits", *TINY, "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr("steelyard.experiments.active.loop.View", interrupted)  # in the second round's selection
        assert main(command) == 130
    assert f"resume with: steelyard active digits {shlex.join(command[2:])} --resume" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert len((tmp_path / "rounds.csv").read_text().splitlines()) == 4
    assert "\n\nSeed 0 alone, so without a spread, in per cent. " in (tmp_path / "README.md").read_text()
    monkeypatch.setattr("steelyard.experiments.active.grid.data_of", lambda *settings: pytest.fail("finished runs"))
    assert main([*command, "--resume"]) == 0  # of them tables are made without their data


def test_four_moons_has_its_picture(tmp_path: Path) -> None:
    small = ["--set", "data.samples=200", "--set", "epochs.epochs=1", "--set", "schedule.rounds=1"]
    small += ["--set", "schedule.per_round=10", "--out", str(tmp_path)]
    assert main(["active", "four_moons", *small, "--selectors", "conf", "lhd"]) == 0
    assert (tmp_path / "moons.png").read_bytes().startswith(b"\x89PNG")
    assert "three moons that can be learned" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["active", "digit"], "did you mean 'digits'"),
        (["active", "digits", "--selectors", "conf", "conf"], "--selectors names conf twice"),
        (["active", "digits", "--noises", "noisy_blank", "noisy_blank"], "--noises names noisy_blank twice"),
        (["active", "digits", "--set", "schedule.rounds=0"], "schedule: rounds must be >= 1, got 0"),
        (["active", "digits", "--checkpoint-every", "0"], "--checkpoint-every must be at least 1"),
        (["active", "digits", "--tables", "/proc/x"], "--tables /proc/x cannot be written"),
        (["active", "coloured_digits/erm"], "another command: steelyard run coloured_digits/erm"),
        (["active", "digits", "--selectors", "random"], "selector must be one of"),
        (["active", "mnist", "--set", "device=cpu"], "needs a data root"),
        (["active", "digits", "--resume", "--overwrite"], "exclude"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.delenv("STEELYARD_DATA", raising=False)
    assert main([*arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.rglob("*"))


def test_runs_that_make_no_table(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="at least one"):
        tables.cells([])
    overrides = tuple(word for word in TINY if word != "--set")
    grid = Grid.of("digits", overrides, tmp_path, selectors=["rand"], seeds=[0])
    assert grid.rounds == 3
    grid.check(overwrite=False, resume=False)
    grid.execute(tmp_path / "t", data_root=None, download=False, overwrite=False, resume=False)
    with pytest.raises(RunError, match="same method, noise and seed"):
        write_active_report([grid.runs[0]] * 2, tmp_path / "t", "command")
    with pytest.raises(UserError, match="not empty"):
        grid.check(overwrite=False, resume=False)
