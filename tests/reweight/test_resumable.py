"""Ctrl-C in the middle of `Maple.fit`: the last finished step is kept, the message says how to resume; and progress."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from steelyard._support._packages import MissingPackage
from steelyard._support._signals import interrupts_held
from steelyard.bilevel import WeightedLoss
from steelyard.checkpoint import Journal
from steelyard.reweight import InnerRun, Maple, Sqrt, VREx
from tests.support.environments import CROSS_ENTROPY, spurious

STEPS, INNER = 5, 4
TRAIN = spurious(40)[0]


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """As in a terminal: what a shell starts in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


CALLS = {"made": 0, "interrupted": 0}


def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The loss of every sample; at one of its calls Ctrl-C comes."""
    CALLS["made"] += 1
    if CALLS["made"] == CALLS["interrupted"]:
        signal.raise_signal(signal.SIGINT)
    return CROSS_ENTROPY(outputs, targets)


def maple(restart: bool = True, interrupted: int = 0) -> Maple:
    """Return a run that Ctrl-C meets at that call of the loss, counted from 1; 0: never."""
    CALLS.update(made=0, interrupted=interrupted)
    optimizer = partial(torch.optim.SGD, lr=0.5, momentum=0.9)
    inner = InnerRun(
        lambda: torch.nn.Linear(2, 2).double(), optimizer, WeightedLoss(loss), INNER, batch_size=16, restart=restart
    )
    return Maple(inner, Sqrt(VREx()), budget=20, steps=STEPS)


@pytest.mark.parametrize("restart", [True, False])
@pytest.mark.parametrize("finished", [0, 3])
def test_an_interrupted_step_is_not_half_taken_and_the_same_call_resumes(
    tmp_path: Path, restart: bool, finished: int
) -> None:
    calls = [0]
    expected = maple(restart).fit(TRAIN, callbacks=[lambda step: calls.append(CALLS["made"])])
    place = tmp_path / "run.safetensors"
    given = maple(restart, calls[finished] + INNER - 1)
    words = f"interrupted after outer step {finished} of {STEPS}, which is saved in {place}; the same call again, "
    with pytest.raises(KeyboardInterrupt) as caught:
        given.fit(TRAIN, journal=Journal(place))  # by itself it would have written nothing before 50 steps
    assert str(caught.value) == f"{words}fit(..., journal=Journal({str(place)!r})), resumes from there"
    # In the same session, with the same objects, or in another one.
    for resumed in (given, maple(restart)):
        copy = tmp_path / "copy.safetensors"
        copy.write_bytes(place.read_bytes())
        found = resumed.fit(TRAIN, journal=Journal(copy))
        assert torch.equal(found.probabilities, expected.probabilities)
        assert torch.equal(found.weights, expected.weights)
        assert found.history == expected.history


def test_in_a_callback_the_step_is_finished_first(tmp_path: Path) -> None:
    expected = maple().fit(TRAIN)
    seen = []

    def interrupt(step) -> None:
        if step.step == 1:
            signal.raise_signal(signal.SIGINT)
        seen.append(step.step)

    journal = Journal(tmp_path / "run.safetensors")
    with pytest.raises(KeyboardInterrupt, match="interrupted after outer step 2 of 5, which is saved in"):
        maple().fit(TRAIN, callbacks=[interrupt], journal=journal)
    found = maple().fit(TRAIN, callbacks=[interrupt], journal=Journal(tmp_path / "run.safetensors"))
    assert seen == list(range(STEPS))
    assert torch.equal(found.probabilities, expected.probabilities)


def test_without_a_journal_it_is_said_how_to_have_one() -> None:
    given = maple(interrupted=INNER - 1)
    state = given.begin(TRAIN)
    words = (
        r"after outer step 0 of 5, and nothing is kept; .*journal=Journal\('run\.safetensors'\).* resume from there$"
    )
    with pytest.raises(KeyboardInterrupt, match=words):
        given.fit(TRAIN, state=state)
    assert state.step == 0
    assert torch.equal(given.fit(TRAIN, state=state).probabilities, maple().fit(TRAIN).probabilities)


def test_a_held_interrupt_comes_at_the_end_of_the_block_and_a_second_one_at_once() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt):
        with interrupts_held():
            signal.raise_signal(signal.SIGINT)
            done.append(1)
        done.append(2)
    with pytest.raises(KeyboardInterrupt), interrupts_held():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        done.append(3)
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_handler_is_left_alone() -> None:
    came = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        with interrupts_held():
            signal.raise_signal(signal.SIGINT)
            assert came == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_progress_is_shown_where_asked_for_and_else_only_in_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for silent in (None, False):
        maple().fit(TRAIN, progress=silent)
        assert capsys.readouterr() == ("", "")
    maple().fit(TRAIN, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "step 5/5: outer loss" in err
    assert "100%" in err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    maple().fit(TRAIN)
    assert "step 5/5: outer loss" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "rich.console", None)
    maple().fit(TRAIN)
    assert capsys.readouterr().err == ""
    with pytest.raises(MissingPackage, match=r"Maple\.fit\(progress=True\) needs rich, which is not installed: pip"):
        maple().fit(TRAIN, progress=True)
