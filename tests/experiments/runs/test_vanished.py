"""A run whose files vanish under it: an error, and nothing of what it wrote is removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from steelyard.experiments.active.recipe import load_active_recipe
from steelyard.experiments.active.run import execute_active, read_active_run
from steelyard.experiments.errors import RunError
from steelyard.experiments.runs.replacement import replacing
from steelyard.experiments.runs.run import execute, read_run
from tests.support.shrunk import short

RECIPE = short("coloured_digits/maple")


def removed(place: Path) -> None:
    (place / "metrics.jsonl").unlink()


def another(place: Path) -> None:
    os.replace(place / "metrics.jsonl", place / "kept.jsonl")
    shutil.copy(place / "kept.jsonl", place / "metrics.jsonl")
    (place / "kept.jsonl").unlink()


def folder_gone(place: Path) -> None:
    shutil.rmtree(place)


def parent_gone(place: Path) -> None:
    shutil.rmtree(place.parent)


def folder_moved(place: Path) -> None:
    place.rename(place.parent / "moved")


def folder_replaced(place: Path) -> None:
    place.rename(place.parent / "moved")
    place.mkdir()
    (place / "theirs.txt").write_text("another's")


def unlocked(place: Path) -> None:
    (place / "run.lock").unlink()


VANISHING = [removed, another, folder_gone, parent_gone, folder_moved, folder_replaced, unlocked]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("vanish", VANISHING)
@pytest.mark.parametrize("at", [1, RECIPE.method.last_step])
def test_what_vanishes_under_a_run_is_an_error(
    vanish: Callable[[Path], None], at: int, overwrite: bool, tmp_path: Path
) -> None:
    place = tmp_path / "runs" / "seed1"
    if overwrite:
        execute(RECIPE, place, name="x")

    def progress(evaluation: object) -> None:
        if evaluation.visible.step == at:  # type: ignore[attr-defined]
            vanish(place)

    with pytest.raises(RunError, match="no longer the fol|no longer the file"):
        execute(RECIPE, place, name="x", overwrite=overwrite, checkpoint_every=1, progress=progress)
    if vanish is folder_replaced:
        assert [path.name for path in place.iterdir()] == ["theirs.txt"]
    if vanish in (folder_gone, parent_gone, folder_moved):
        assert not place.exists()  # and not made again
    if vanish in (folder_moved, folder_replaced):
        assert {"config.json", "metrics.jsonl"} <= {path.name for path in (place.parent / "moved").iterdir()}
    if vanish in (removed, another, unlocked):
        assert (place / "config.json").exists()


def test_a_configuration_that_vanishes_is_told_before_the_run_counts_as_finished(tmp_path: Path) -> None:
    def progress(evaluation: object) -> None:
        (tmp_path / "run" / "config.json").unlink(missing_ok=True)

    with pytest.raises(RunError, match=r"config\.json was removed meanwhile"):
        execute(RECIPE, tmp_path / "run", name="x", progress=progress)
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"metrics.jsonl", "model.safetensors", "result.parquet"} <= left
    assert "environment.json" not in left


def test_a_finished_run_is_never_cleared(tmp_path: Path) -> None:
    """Whatever fails afterwards, and whatever else is missing by then."""
    execute(RECIPE, tmp_path / "run", name="x")
    before = {path.name for path in (tmp_path / "run").iterdir()} - {"metrics.jsonl"}
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "run", False, ["metrics.jsonl"]):
        (tmp_path / "run" / "metrics.jsonl").unlink()
        raise ZeroDivisionError
    assert {path.name for path in (tmp_path / "run").iterdir()} == before


def test_a_run_that_ends_well_is_not_cleared(tmp_path: Path) -> None:
    with replacing(tmp_path, False, ["metrics.jsonl"]):
        (tmp_path / "model.safetensors").write_text("hours of work")
    assert (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("vanish", [folder_gone, folder_replaced, unlocked])
@pytest.mark.parametrize("last", [False, True])
def test_what_vanishes_under_active_learning(vanish: Callable[[Path], None], last: bool, tmp_path: Path) -> None:
    few = ["schedule.initial=20", "schedule.per_round=5", "schedule.rounds=1", "epochs.epochs=1", "model.hidden=[4]"]
    recipe, place = load_active_recipe("digits", few), tmp_path / "runs" / "seed0"

    def progress(done: object) -> None:
        if done.number == int(last):  # type: ignore[attr-defined]
            vanish(place)

    with pytest.raises(RunError, match="is no longer the folder of this run"):
        execute_active(recipe, place, name="x", progress=progress)
    assert place.exists() == (vanish is not folder_gone)
    if vanish is folder_replaced:
        assert [path.name for path in place.iterdir()] == ["theirs.txt"]


def test_what_did_not_vanish_is_read_back(tmp_path: Path) -> None:
    few = ["schedule.initial=20", "schedule.per_round=5", "schedule.rounds=1", "epochs.epochs=1", "model.hidden=[4]"]
    run = execute_active(load_active_recipe("digits", few), tmp_path / "active", name="x")
    assert read_active_run(tmp_path / "active").history == run.history
    assert read_run(execute(RECIPE, tmp_path / "run", name="x").directory).recipe == RECIPE
