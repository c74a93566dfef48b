"""Runs beside each other: the same bytes as alone, failures that stop nobody else, stops and kills."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from steelyard.checkpoint import Stopped
from steelyard.experiments.runs.jobs import Failed, Options, Planned, execute_all, shared_threads
from steelyard.experiments.runs.recipe import load_recipe
from steelyard.experiments.runs.run import Run, read_run
from steelyard.experiments.training.evaluation import Visible


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


TINY = ("method.training.steps=4", "method.training.evaluate_every=2", "model.hidden=[8]")


def planned(folder: Path, *more: str, seeds: tuple[int, ...] = (0, 1), name: str = "erm") -> list[Planned]:
    recipe, fields = f"coloured_digits/{name}", (*TINY, *more)
    return [Planned(load_recipe(recipe, fields, k), folder / name / f"seed{k}", recipe, fields) for k in seeds]


def same_bytes(one: Path, two: Path) -> None:
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    for path in one.iterdir():
        if path.name != "environment.json":  # it holds the seconds
            assert path.read_bytes() == (two / path.name).read_bytes(), path.name


def test_runs_beside_each_other_have_the_bytes_of_runs_alone_and_none_stops_another(tmp_path: Path) -> None:
    diverging = planned(tmp_path / "two", "method.training.optimizer={name='sgd', learning_rate=1e30}", name="irmv1")
    beside = [*planned(tmp_path / "two"), diverging[0]]
    alone = planned(tmp_path / "one")
    seen: list[tuple[int, object]] = []
    first = execute_all(alone, Options())
    found = execute_all(beside, Options(), jobs=2, threads=1, watch=lambda k, reached: seen.append((k, reached)))
    for one, two in zip(alone, beside, strict=False):
        same_bytes(one.directory, two.directory)
    assert [type(one) for one in found] == [Run, Run, Failed]
    assert isinstance(found[2], Failed)
    assert "step 2: the loss of" in found[2].why
    assert [one.history for one in found[:2] if isinstance(one, Run)] == [
        one.history for one in first if isinstance(one, Run)
    ]
    assert {k for k, reached in seen if reached is None} == {0, 1}
    assert [reached for k, reached in seen if k == 0] == [e.visible for e in read_run(beside[0].directory).history] + [
        None
    ]
    assert all(isinstance(reached, (Visible, Failed, type(None))) for _, reached in seen)


def test_a_run_that_fails_alone_does_not_stop_the_next(tmp_path: Path) -> None:
    wrong, right = planned(tmp_path)
    wrong.directory.mkdir(parents=True)
    (wrong.directory / "thesis.tex").write_text("years of work")
    found = execute_all([wrong, right], Options())
    assert isinstance(found[0], Failed)
    assert "is not empty" in found[0].why
    assert isinstance(found[1], Run)


def test_runs_that_are_stopped_are_resumed_to_the_same_bytes(tmp_path: Path) -> None:
    """The second is stopped before its first step, or, on a busy machine, a few steps later; both do not matter."""
    long = ("method.training.steps=60", "method.training.evaluate_every=1", "method.training.batch_size=16")
    beside, alone = planned(tmp_path / "two", *long), planned(tmp_path / "one", *long)
    seen: list[int] = []
    with suppress(Stopped):  # unless all were faster
        execute_all(
            beside,
            Options(),
            jobs=2,
            threads=1,
            watch=lambda number, reached: seen.append(number),
            stop=lambda: signal.SIGINT * bool(seen),
        )
    execute_all(beside, Options(resume=True), jobs=2, threads=1)
    execute_all(alone, Options())
    for one, two in zip(alone, beside, strict=True):
        same_bytes(one.directory, two.directory)


def test_a_stop_before_the_first_step_leaves_nothing_and_says_why(tmp_path: Path) -> None:
    asked: list[int] = []

    def stop() -> int:
        asked.append(1)
        return signal.SIGINT * (len(asked) > 1)  # once both were started

    runs = planned(tmp_path, "method.training.steps=100000")
    with pytest.raises(Stopped) as stopped:
        execute_all(runs, Options(), jobs=2, threads=1, stop=stop)
    assert stopped.value.reason == signal.SIGINT
    assert not any((one.directory / "environment.json").exists() for one in runs)


def test_a_process_that_the_system_kills_is_told_of_and_stops_no_other(tmp_path: Path) -> None:
    endless = planned(tmp_path / "endless", "method.training.steps=100000", "method.training.evaluate_every=1")[:1]
    runs = [*endless, *planned(tmp_path, seeds=(1,))]

    def kill(number: int, reached: object) -> None:
        if number == 0 and isinstance(reached, Visible):
            for child in multiprocessing.active_children():
                if child.pid is not None and child.name.endswith("seed 0"):
                    os.kill(child.pid, signal.SIGKILL)

    found = execute_all(runs, Options(), jobs=2, threads=1, watch=kill)
    assert isinstance(found[0], Failed)
    assert "its process ended by SIGKILL" in found[0].why
    assert isinstance(found[1], Run)


def test_a_signal_that_comes_to_all_processes_at_once_is_a_stop(tmp_path: Path) -> None:
    runs = planned(tmp_path, "method.training.steps=100000", "method.training.evaluate_every=1")
    killed: list[int] = []

    def kill(number: int, reached: object) -> None:
        if isinstance(reached, Visible) and not killed:
            for child in multiprocessing.active_children():
                if child.pid is not None and " seed " in child.name:
                    os.kill(child.pid, signal.SIGTERM)
                    killed.append(child.pid)

    with pytest.raises(Stopped):
        execute_all(runs, Options(), jobs=2, threads=1, watch=kill, stop=lambda: signal.SIGTERM * bool(killed))


def test_threads_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert [shared_threads(jobs, runs) for jobs, runs in ((2, 9), (4, 9), (9, 9), (9, 2))] == [2, 1, 1, 2]


SHELL = """
from steelyard.cli import main
print("status", main(["run", "coloured_digits/erm", "--seeds", "0", "1", "--jobs", "2", "--out", {out!r}, *{fields!r}]))
"""


def test_a_shell_without_a_script_and_a_stop_that_all_runs_obey(tmp_path: Path) -> None:
    """Code from stdin has no file that a process could import."""
    fields = [word for field in (*TINY[1:], "method.training.steps=100000") for word in ("--set", field)]
    shell = subprocess.Popen(
        [sys.executable, "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert shell.stdin is not None
    shell.stdin.write(SHELL.format(out=str(tmp_path), fields=fields))
    shell.stdin.close()
    shell.stdin = None
    metrics = [tmp_path / f"seed{k}" / "metrics.jsonl" for k in (0, 1)]
    deadline = time.monotonic() + 120
    while not all(path.is_file() and path.stat().st_size for path in metrics):
        assert shell.poll() is None, shell.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    shell.send_signal(signal.SIGTERM)
    out, error = shell.communicate(timeout=120)
    assert "status 143" in out
    assert "resume with: steelyard run coloured_digits/erm" in error
    assert "--jobs 2" in error
    assert all((path.parent / "checkpoint.safetensors").is_file() for path in metrics)
