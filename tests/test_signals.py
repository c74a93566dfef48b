"""Signals: a run that is asked to stop finishes its step, saves, and says how to go on."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from steelyard._support._signals import noted_signals
from steelyard.cli import main

RUN = [
    *("run", "coloured_digits/erm", "--overwrite", "--set", "model.hidden=[8]", "--set", "method.training.steps=1000"),
    *("--set", "method.training.batch_size=64", "--set", "method.training.evaluate_every=50", "--threads", "1"),
]


@pytest.fixture
def python_handles_sigint() -> Iterator[None]:
    """A process that a shell has put in the background ignores SIGINT, and so would what runs in it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_signal_is_noted_and_the_second_acts(python_handles_sigint: None) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    told: list[str] = []
    with noted_signals(lambda: told.append("told")) as came:
        assert came() == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert (came(), told) == (signal.SIGTERM, ["told"])
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)  # until the signal is delivered
    assert {number: signal.getsignal(number) for number in before} == before


def test_handlers_are_put_back_after_an_exception_and_not_touched_by_threads() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError, match="x"), noted_signals():
        assert signal.getsignal(signal.SIGINT) != before
        raise RuntimeError("x")
    assert signal.getsignal(signal.SIGINT) == before
    found = []

    def elsewhere() -> None:
        with noted_signals() as came:
            found.append((came(), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [(0, before)]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, status: int
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "env": environment}
    metrics = tmp_path / "out" / "seed0" / "metrics.jsonl"
    with subprocess.Popen([sys.executable, "-m", "steelyard", *RUN, "--out", "out"], **pipes) as child:
        while child.poll() is None and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.01)
        child.send_signal(number)
        said = child.communicate()[1]
    assert child.returncode == status, said
    assert f"stopped by {number.name} after a whole step; resume with: steelyard run" in said
    command = shlex.split(said.split("resume with: ")[1])
    assert command[-1] == "--resume"
    assert "--overwrite" not in command
    lines = metrics.read_text().splitlines()
    assert 0 < len(lines) < 20
    if number == signal.SIGINT:
        assert main(command[1:]) == 0
        assert main([*RUN, "--out", "whole"]) == 0
        for name in ("metrics.jsonl", "model.safetensors"):
            assert (tmp_path / "whole/seed0" / name).read_bytes() == (tmp_path / "out/seed0" / name).read_bytes()
