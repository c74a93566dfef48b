"""Resume: a run that dies at any moment and is resumed equals the uninterrupted one, bit for bit."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from steelyard._support import _files
from steelyard._support._state import encode
from steelyard._support._state import read as read_state
from steelyard.checkpoint import Journal, Stopped
from steelyard.experiments.active.run import read_active_run
from steelyard.experiments.data import DataSet, Splits
from steelyard.experiments.errors import RunError
from steelyard.experiments.priors.computed import PRIOR
from steelyard.experiments.runs import run as run_module
from steelyard.experiments.runs.log import Log
from steelyard.experiments.runs.recipe import Recipe, load_recipe, recipe_names
from steelyard.experiments.runs.run import execute, read_run
from steelyard.reweight import Reweighting
from tests.support.ending import Killed, lasting
from tests.support.layouts import write_waterbirds
from tests.support.shrunk import short

NAMES = [name for name in recipe_names() if name.startswith("coloured_digits/")]


@cache
def splits_of(data: DataSet, seed: int) -> Splits:
    return data.load(seed)


def go(recipe: Recipe, place: Path, **options: object):  # type: ignore[no-untyped-def]
    splits = None if "data_root" in options else splits_of(recipe.data, recipe.seed)
    return execute(recipe, place, name="x", splits=splits, **options)  # type: ignore[arg-type]


@contextmanager
def killed_before_save(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Die where the checkpoint `number` (from 1) would be written; yields how many were."""
    saved: list[int] = []
    save = Journal.save

    def dying(self: Journal) -> None:
        if self.path is not None:
            if len(saved) + 1 == number:
                raise Killed
            saved.append(1)
        save(self)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "save", dying)
        yield saved


def contents(path: Path) -> tuple[dict[str, str], dict[str, list[float]]]:
    with safe_open(path, framework="pt") as file:
        return file.metadata(), {name: file.get_tensor(name).tolist() for name in file.keys()}  # noqa: SIM118


def assert_same_run(one: Path, two: Path) -> None:
    """Same files, same bytes; but for the seconds, and the order of a header's fields."""
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    for path in one.iterdir():
        if path.name == "reweighting.safetensors":
            assert Reweighting.load(path) == Reweighting.load(two / path.name)
        elif path.name == PRIOR:
            assert contents(path) == contents(two / path.name)
        elif path.name != "environment.json":
            assert path.read_bytes() == (two / path.name).read_bytes(), path.name


def die_at_every_checkpoint(recipe: Recipe, place: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> int:
    """Run, dying before the second checkpoint of every process and once after the last; return how often it died."""
    fitted = []
    write = run_module._write_outcome

    def dying(*arguments: object) -> object:
        fitted.append(1)
        if len(fitted) == 1:
            raise Killed
        return write(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(run_module, "_write_outcome", dying)
        for deaths in range(100):
            try:
                with killed_before_save(2, monkeypatch):
                    go(recipe, place, checkpoint_every=1, resume=True, **options)
            except Killed:
                continue
            return deaths
    raise AssertionError("no progress")


@pytest.mark.parametrize("name", NAMES)
def test_every_method_dies_at_every_step_and_ends_as_if_it_had_not(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = short(name)
    whole = go(recipe, tmp_path / "whole")
    deaths = die_at_every_checkpoint(recipe, tmp_path / "broken", monkeypatch)
    stages = {"jtt": 2, "mrm": 3}.get(recipe.method.name, 1)
    steps = recipe.method.steps if recipe.method.name == "maple" else 4 * stages
    assert deaths == steps
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    assert read_run(tmp_path / "broken").history == whole.history


@pytest.mark.parametrize(
    "more",
    [
        ["method.inner.restart=false", "method.folds=1"],
        ["method.retrain=true", "method.learn='probabilities'", "method.draws=2"],
        ["method.inner.batch_size=40", "method.inner.optimizer={name='adam', learning_rate=0.01}"],
        [
            "method.prior.anchor=0.01",
            "method.prior.scores=[{name='lhd', training={steps=3}}, {name='el2n', models=2, training={steps=2}}]",
        ],
    ],
    ids=["warm start", "retrained", "inner batches", "priors"],
)
def test_maple_in_its_variants(more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = short("coloured_digits/maple", *more)
    go(recipe, tmp_path / "whole")
    deaths = die_at_every_checkpoint(recipe, tmp_path / "broken", monkeypatch)
    assert deaths == 3
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_maple_on_images_that_stay_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a prior by a short run on them, and BatchNorm in the net."""
    write_waterbirds(tmp_path / "data", counts=((2, 1, 1, 2), (1, 1, 1, 1), (1, 1, 1, 1)))
    short_run = "{steps=2, batch_size=3}"
    fields = ["data.workers=0", "model={name='resnet18', width=1}", "method.steps=3", "method.budget=4"]
    fields += ["method.inner.steps=2", "method.inner.batch_size=3", "method.inner.restart=false"]
    fields += [f"method.prior.scores=[{{name='lhd', training={short_run}}}]"]
    recipe = load_recipe("waterbirds/maple", fields, 1)
    options = {"data_root": tmp_path / "data"}
    go(recipe, tmp_path / "whole", **options)
    assert die_at_every_checkpoint(recipe, tmp_path / "broken", monkeypatch, **options) == 3
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


ERM = short("coloured_digits/erm")


def half_done(place: Path, monkeypatch: pytest.MonkeyPatch, recipe: Recipe = ERM) -> Path:
    """Leave a run that died when it had written two checkpoints."""
    with killed_before_save(3, monkeypatch), pytest.raises(Killed):
        go(recipe, place, checkpoint_every=1)
    return place


def test_a_stop_saves_the_step_and_names_its_reason(tmp_path: Path) -> None:
    go(ERM, tmp_path / "whole")
    for done in range(1, 5):
        calls = iter([0, 15])  # asked at the beginning of the stage, and after a step
        with pytest.raises(Stopped) as caught:
            go(ERM, tmp_path / "broken", stop=lambda calls=calls: next(calls), resume=True, checkpoint_every=100)
        assert caught.value.reason == 15
        kept = read_state(tmp_path / "broken" / "checkpoint.safetensors", "steelyard.checkpoint.1")["stages"]
        assert [stage["done"] for stage in kept] == [done]
    go(ERM, tmp_path / "broken", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_resume_leaves_a_finished_run_alone_and_begins_a_missing_one(tmp_path: Path) -> None:
    told: list[int] = []
    first = go(ERM, tmp_path, resume=True, progress=lambda e: told.append(e.visible.step))
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = go(ERM, tmp_path, resume=True, progress=lambda e: told.append(e.visible.step))
    assert told == [2, 4, 4]
    assert again.history == first.history
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_the_history_goes_on_and_the_seconds_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half_done(tmp_path, monkeypatch)
    noted = Journal(tmp_path / "checkpoint.safetensors", identity=_identity(tmp_path)).noted
    told: list[int] = []
    run = go(ERM, tmp_path, resume=True, progress=lambda e: told.append(e.visible.step))
    assert told == [2, 4]  # the last one before, then what is new
    assert [evaluation.visible.step for evaluation in run.history] == [2, 4]
    assert run.environment["seconds"] > noted["seconds"]


def _identity(place: Path) -> dict[str, str]:
    identity = read_state(place / "checkpoint.safetensors", "steelyard.checkpoint.1")["identity"]
    return {"recipe": identity["recipe"]}


def test_an_unfinished_run_is_not_begun_again_by_accident(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half_done(tmp_path, monkeypatch)
    with pytest.raises(RunError, match="not empty; .*--resume to continue .*--overwrite"):
        go(ERM, tmp_path)
    with pytest.raises(RunError, match="did not finish.*--resume"):
        read_run(tmp_path)
    with pytest.raises(RunError, match="give one of them"):
        go(ERM, tmp_path, resume=True, overwrite=True)


def test_another_recipe_is_refused_by_the_field_that_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half_done(tmp_path, monkeypatch)
    other = short("coloured_digits/erm", "method.training.l2=0.5")
    with pytest.raises(RunError, match=r"another recipe: method\.training\.l2 is 0\.0\d* there and 0\.5 here"):
        go(other, tmp_path, resume=True)
    (tmp_path / "config.json").unlink()  # then the checkpoint itself says no
    with pytest.raises(RunError, match=r"checkpoint\.safetensors is of another computation: its recipe is"):
        go(other, tmp_path, resume=True)
    go(ERM, tmp_path, resume=True)
    with pytest.raises(RunError, match="another recipe"):  # a finished one too
        go(other, tmp_path, resume=True)


def test_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half_done(tmp_path, monkeypatch)
    monkeypatch.setattr("steelyard.__version__", "9.9")
    with pytest.raises(RunError, match=r"its steelyard is '.*', here it is '9\.9'; resume it as it was begun"):
        go(ERM, tmp_path, resume=True)


@pytest.mark.parametrize("damage", ["cut short", "a bit", "empty", "a pickle", "not ours"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_goes_on(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(ERM, tmp_path / "whole")
    place = half_done(tmp_path / "broken", monkeypatch)
    newest = place / "checkpoint.safetensors"
    data = newest.read_bytes()
    flipped = bytearray(data)
    flipped[-100] ^= 1
    newest.write_bytes(
        {
            "cut short": data[:-7],
            "a bit": bytes(flipped),
            "empty": b"",
            "a pickle": b"\x80\x04\x95cos\nsystem\n",
            "not ours": encode({}, "something.else"),
        }[damage]
    )
    with pytest.raises(RunError, match=r"checkpoint\.safetensors: it .*; the one before it is whole: ") as caught:
        go(ERM, place, resume=True)
    assert "checkpoint.previous.safetensors (stage 1, step 1); remove" in str(caught.value)
    newest.unlink()
    go(ERM, place, resume=True)
    assert_same_run(tmp_path / "whole", place)


def test_nothing_is_lost_between_the_two_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(ERM, tmp_path / "whole")
    place = half_done(tmp_path / "broken", monkeypatch)
    os.replace(place / "checkpoint.safetensors", place / "checkpoint.previous.safetensors")
    shutil.copy(place / "config.json", place / ".checkpoint.safetensors.abc.safetensors")  # a temporary file
    go(ERM, place, resume=True)
    assert_same_run(tmp_path / "whole", place)


def test_metrics_that_were_cut_are_not_made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half_done(tmp_path, monkeypatch)
    text = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(text[:-30])
    with pytest.raises(RunError, match=r"metrics\.jsonl has 0 whole lines, but the checkpoint .* 1 evaluated step"):
        go(ERM, tmp_path, resume=True)


@pytest.mark.parametrize("victim", ["checkpoint.safetensors", "metrics.jsonl", "model.safetensors"])
def test_a_full_disk_is_said_and_loses_nothing(victim: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second write of the file on there is no space."""
    go(ERM, tmp_path / "whole")
    place, writes = tmp_path / "broken", []

    def full() -> None:
        writes.append(1)
        if len(writes) > (1 if victim != "model.safetensors" else 0):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        write, add = Path.write_bytes, Log.add
        if victim == "metrics.jsonl":
            patched.setattr(Log, "add", lambda self, evaluation: (full(), add(self, evaluation)))
        else:
            name = f".{victim}"
            patched.setattr(
                Path, "write_bytes", lambda path, data: (path.name.startswith(name) and full(), write(path, data))[1]
            )
        with pytest.raises(RunError, match="cannot be written: .*No space left on device") as caught:
            go(ERM, place, checkpoint_every=1)
    if victim == "checkpoint.safetensors":
        assert "the one before it is kept: " in str(caught.value)
        assert "checkpoint.safetensors (stage 1, step 1)" in str(caught.value)
    else:
        assert "--resume" in str(caught.value)
    assert not [path for path in place.iterdir() if path.name.startswith(".")]
    go(ERM, place, resume=True)
    assert_same_run(tmp_path / "whole", place)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """Under /proc nobody makes a folder, not even root."""
    with pytest.raises(RunError, match="cannot write into /proc/run"):
        go(ERM, Path("/proc/run"))
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write into"):
        go(ERM, tmp_path / "file" / "run")


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    """The second is refused while the first, another process, lives; a dead one's lock is none."""
    script = (
        "import sys; from steelyard._support._files import lock\n"
        "with lock(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "run.lock")], **pipes) as child:
        assert child.stdout.readline() == b"held\n"
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(RunError, match=rf"is in use by process {child.pid} on .*; wait for it"):
                go(ERM, tmp_path, **options)
        child.kill()
    assert (tmp_path / "run.lock").exists()
    go(ERM, tmp_path)
    assert not (tmp_path / "run.lock").exists()


def test_a_run_that_meets_nan_says_where_and_leaves_its_state(tmp_path: Path) -> None:
    recipe = short("coloured_digits/erm", "method.training.optimizer={name='sgd', learning_rate=1e30}")
    with pytest.raises(RunError, match=r"x, seed 1: step 2: the loss of sample.* is (nan|inf)") as caught:
        go(recipe, tmp_path)
    assert "checkpoint.failed.safetensors" in str(caught.value)
    state = read_state(tmp_path / "checkpoint.failed.safetensors", "steelyard.failure.1")["stage"]
    assert state["done"] == 1
    assert set(state["parts"]["learner"]["model"]) == {"1.weight", "1.bias", "3.weight", "3.bias"}
    assert not (tmp_path / "run.lock").exists()


def test_a_lock_that_a_kill_left_in_a_finished_run_is_removed(tmp_path: Path) -> None:
    recipe = ERM
    go(recipe, tmp_path)
    lock = tmp_path / "run.lock"
    lock.write_text("process 1 on a machine that died\n")
    go(recipe, tmp_path, resume=True)
    assert not lock.exists()
    with _files.lock(lock):  # held: by a process that is about to finish
        go(recipe, tmp_path, resume=True)
        assert lock.exists()
    (tmp_path / "other").write_text("mine")
    lock.symlink_to(tmp_path / "other")
    go(recipe, tmp_path, resume=True)
    assert lock.is_symlink()
    assert (tmp_path / "other").read_text() == "mine"


@pytest.mark.slow
def test_twenty_kills(tmp_path: Path) -> None:
    """SIGKILL at 20 seeded random moments of five methods' runs, in processes of their own; each is resumed."""
    for place in killed_runs(tmp_path):
        assert_same_run(place.parent / "whole", place)


@pytest.mark.slow
def test_twenty_kills_of_active_learning(tmp_path: Path) -> None:
    """The same with runs of active learning, within rounds and between them; their seconds differ, nothing else."""
    for place in killed_runs(tmp_path, "--active"):
        whole, resumed = (read_active_run(folder) for folder in (place.parent / "whole", place))
        assert [lasting(row) for row in resumed.history] == [lasting(row) for row in whole.history]
        assert all(torch.equal(a, b) for a, b in zip(resumed.picked, whole.picked, strict=True))
        assert all(torch.equal(resumed.model[name], value) for name, value in whole.model.items())


def killed_runs(folder: Path, *options: str) -> Iterator[Path]:
    """Kill 20 runs below `folder`, resume each, and yield where they lie."""
    command = [sys.executable, "-m", "tests.experiments.kills", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(kill["killed"] for kill in kills) == 20
    assert sum(kill["checkpoint"] and kill["killed"] for kill in kills) >= 5
    yield from (Path(kill["place"]) for kill in kills)
