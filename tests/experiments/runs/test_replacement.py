"""A run that another replaces: put back when that fails early, never lost to a kill."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from steelyard.experiments.active.recipe import load_active_recipe
from steelyard.experiments.active.run import execute_active
from steelyard.experiments.errors import RunError
from steelyard.experiments.runs.folder import check_directory, remove_run
from steelyard.experiments.runs.replacement import recover, replacing, settle
from steelyard.experiments.runs.run import execute, read_run
from tests.support.ending import Killed
from tests.support.shrunk import short

OLD = {"config.json": "{}", "metrics.jsonl": "old\n", "model.safetensors": "parameters", "environment.json": "{}"}
NEW = {"config.json": "{'new'}", "metrics.jsonl": "", "prior.safetensors": "scores"}
SIGNS = ("metrics.jsonl", "checkpoint.safetensors")


def write(place: Path, texts: dict[str, str]) -> None:
    place.mkdir(exist_ok=True)
    for name, text in texts.items():
        (place / name).write_text(text)


def texts(place: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in place.iterdir()}


@contextmanager
def dying(at: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Die instead of change `at` (from 0) of the file system; a dead process makes none afterwards."""
    done: list[int] = []

    def patched(change: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **options: object) -> object:
            done.append(1)
            if len(done) > at:
                raise Killed
            return change(*arguments, **options)

        return counted

    with monkeypatch.context() as patch:
        for name in ("mkdir", "rename", "replace", "unlink", "rmdir"):
            patch.setattr(Path, name, patched(getattr(Path, name)))
        yield


@pytest.mark.parametrize("got_somewhere", [False, True])
def test_a_kill_at_any_change_loses_neither_run(
    got_somewhere: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = NEW | ({"checkpoint.safetensors": "step 1"} if got_somewhere else {})
    for at in range(100):
        place = tmp_path / str(at)
        write(place, OLD)
        died = begun = False
        try:
            with dying(at, monkeypatch), replacing(place, True, SIGNS):
                begun = True
                for name, text in new.items():
                    (place / name).write_text(text)
        except Killed:
            died = True
        for again in range(100):  # what mends it may be killed too
            try:
                with dying(again, monkeypatch):
                    recover(place, SIGNS)
            except Killed:
                (place / "run.lock").unlink(missing_ok=True)
                continue
            break
        assert texts(place) == (new if begun and got_somewhere else OLD)
        if not died:
            break
    assert at > len(OLD)
    assert not died


def test_a_run_that_has_got_somewhere_needs_no_old_one(tmp_path: Path) -> None:
    write(tmp_path, OLD)
    with pytest.raises(ZeroDivisionError), replacing(tmp_path, True, SIGNS):
        write(tmp_path, NEW)
        assert {"config.json", "metrics.jsonl", "prior.safetensors", ".old"} == {p.name for p in tmp_path.iterdir()}
        (tmp_path / "metrics.jsonl").write_text("step 1\n")
        assert not settle(tmp_path, SIGNS)
        assert not (tmp_path / ".old").exists()
        raise ZeroDivisionError
    assert texts(tmp_path) == NEW | {"metrics.jsonl": "step 1\n"}


def test_a_first_run_that_evaluated_nothing_leaves_nothing_but_the_state_it_failed_in(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), replacing(tmp_path, False, SIGNS):
        write(tmp_path, NEW | {"checkpoint.failed.safetensors": "state"})
        raise ZeroDivisionError
    assert texts(tmp_path) == {"checkpoint.failed.safetensors": "state"}
    check_directory(tmp_path, overwrite=False)


@pytest.mark.parametrize("recipe", ["coloured_digits/maple", "coloured_digits/erm"])
def test_an_overwrite_that_fails_leaves_the_old_run(recipe: str, tmp_path: Path) -> None:
    place = tmp_path / "run"
    nan = "method.training.optimizer={name='sgd', learning_rate=1e30}"  # in the second step, before an evaluation
    wrong = "method.budget=999999" if recipe.endswith("maple") else nan
    with pytest.raises(RunError, match="x, seed 1: "):
        execute(short(recipe, wrong), place, name="x")
    assert not place.exists() or [path.name for path in place.iterdir()] == ["checkpoint.failed.safetensors"]
    old = execute(short(recipe), place, name="x")  # what failed does not stand in the way
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    with pytest.raises(RunError, match="x, seed 1: "):
        execute(short(recipe, wrong), place, name="x", overwrite=True)
    after = {path.name: path.read_bytes() for path in place.iterdir()}
    after.pop("checkpoint.failed.safetensors", None)  # the message names it
    assert after == before
    assert read_run(place).history == old.history
    execute(short(recipe, "model.hidden=[5]"), place, name="x", overwrite=True)
    assert {path.name for path in place.iterdir()} == set(before)
    assert read_run(place).recipe != old.recipe


def test_a_kill_before_the_first_step_is_told_and_mended(tmp_path: Path) -> None:
    place, recipe = tmp_path / "run", short("coloured_digits/erm")
    old = execute(recipe, place, name="x")
    (place / ".old").mkdir()
    for path in list(place.iterdir()):
        if path.is_file():
            os.replace(path, place / ".old" / path.name)
    shutil.copy(place / ".old" / "config.json", place)
    with pytest.raises(RunError, match=r"did not finish.*the run it was to replace lies in .*\.old: the next start"):
        read_run(place)
    copy = tmp_path / "copy"
    shutil.copytree(place, copy)
    with pytest.raises(RunError, match="is not empty"):
        execute(recipe, place, name="x")
    assert read_run(place).history == old.history
    assert execute(recipe, copy, name="x", resume=True).history == old.history
    assert not (copy / ".old").exists()


def test_removing_a_run_removes_what_lies_aside(tmp_path: Path) -> None:
    write(tmp_path / "run", NEW)
    write(tmp_path / "run" / ".old", OLD)
    remove_run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_files_that_cannot_be_moved_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, OLD)

    def refused(self: Path, target: object) -> None:
        raise PermissionError(1, "not permitted", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refused)
        with pytest.raises(RunError, match=r"cannot be replaced: .*lies in .*\.old\.moving and .*start again"):
            replacing(tmp_path, True, SIGNS).__enter__()
    recover(tmp_path, SIGNS)
    assert texts(tmp_path) == OLD


def test_active_learning_keeps_its_old_run_too(tmp_path: Path) -> None:
    few = ["schedule.initial=20", "schedule.per_round=5", "schedule.rounds=1", "epochs.epochs=1", "model.hidden=[4]"]
    recipe = load_active_recipe("digits", few)
    old = execute_active(recipe, tmp_path, name="x")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    wrong = replace(recipe, schedule=replace(recipe.schedule, initial=10**6))
    with pytest.raises(RunError, match="x, seed 0: "):
        execute_active(wrong, tmp_path, name="x", overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    again = execute_active(replace(recipe, seed=1), tmp_path, name="x", overwrite=True)
    assert again.history != old.history
    assert {path.name for path in tmp_path.iterdir()} == set(before)
