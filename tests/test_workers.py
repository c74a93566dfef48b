"""Processes that load data: kept between passes, closed, and the same answers and errors as without."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from steelyard._support._random import random_state
from steelyard._support._workers import Loading, WorkerTraceback
from steelyard.bilevel import Streamed
from tests.support.places import ROOT


class OddError(Exception):
    """Does not unpickle: it asks for two arguments."""

    def __init__(self, what: str, where: int) -> None:
        super().__init__(f"{what} at {where}")


class Answering:
    """Answers with the process, and with draws of all generators."""

    def __getitem__(self, request: int) -> dict[str, float]:
        if request == 13:
            raise KeyError("thirteen")
        if request == 14:
            raise OddError("fourteen", 14)
        draws = {"torch": torch.rand(()).item(), "numpy": np.random.rand(), "python": random.random()}  # noqa: NPY002
        return {"request": request, "process": os.getpid(), **draws}


def asked(*requests: int) -> Iterator[tuple[int, int]]:
    return iter([(request, 100 + request) for request in requests])


def without_process(answers: Iterator[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in one.items() if name != "process"} for one in answers]


@pytest.fixture
def loading() -> Iterator[Loading]:
    made = Loading(Answering(), 2, __name__)
    yield made
    made.close()
    assert multiprocessing.active_children() == []


def test_processes_stay_and_answers_and_draws_are_those_of_none(loading: Loading) -> None:
    here = Loading(Answering(), 0, __name__)
    before = random_state()
    expected = without_process(here.answers(asked(*range(9))))
    assert without_process(loading.answers(asked(*range(9)))) == expected
    after = random_state()  # (Python's generator moves by the type checks of the tests)
    assert torch.equal(after["torch"], before["torch"])
    assert torch.equal(after["numpy"][1], before["numpy"][1])
    assert after["numpy"][2:] == before["numpy"][2:]
    first = {one["process"] for one in loading.answers(asked(*range(9)))}
    endless = loading.answers((request, 0) for request in iter(int, 1))
    assert [next(endless)["request"] for _ in range(5)] == [0] * 5  # and is given up
    del endless
    assert without_process(loading.answers(asked(8, 7))) == [expected[8], expected[7]]
    assert {one["process"] for one in loading.answers(asked(*range(9)))} == first
    assert os.getpid() not in first
    assert len(multiprocessing.active_children()) == len(first) == 2


def test_a_pass_inside_of_another_has_processes_of_its_own(loading: Loading) -> None:
    pairs = zip(loading.answers(asked(1, 2, 3)), loading.answers(asked(4, 5, 6)), strict=True)
    assert [(one["request"], other["request"]) for one, other in pairs] == [(1, 4), (2, 5), (3, 6)]
    assert len(multiprocessing.active_children()) == 4


def test_an_error_is_that_of_the_source_and_another_pass_can_begin(loading: Loading) -> None:
    with pytest.raises(KeyError) as caught:
        list(loading.answers(asked(1, 13)))
    assert caught.value.args == ("thirteen",)
    assert isinstance(caught.value.__cause__, WorkerTraceback)
    assert 'raise KeyError("thirteen")' in str(caught.value.__cause__)
    with pytest.raises(RuntimeError, match="^OddError: fourteen at 14$"):
        list(loading.answers(asked(14)))
    assert [one["request"] for one in loading.answers(asked(1, 2))] == [1, 2]
    assert len(multiprocessing.active_children()) == 2


def test_they_end_with_close_with_the_object_and_with_a_block(recwarn: pytest.WarningsRecorder) -> None:
    loading = Loading(Answering(), 1, __name__)
    list(loading.answers(asked(1)))
    loading.close()
    assert multiprocessing.active_children() == []
    assert [one["request"] for one in loading.answers(asked(2))] == [2]  # others
    del loading
    gc.collect()
    assert multiprocessing.active_children() == []
    data = [torch.full((2,), float(row)) for row in range(6)]
    with Streamed.of(data, torch.arange(6), chunk=2, workers=1) as stream:
        assert torch.equal(torch.cat([piece.inputs for piece in stream.chunks(None)]), torch.stack(data))
        moved = stream.to("cpu")
        assert torch.equal(next(moved.at(iter([torch.tensor([5])]))).inputs, data[5][None])
        assert len(multiprocessing.active_children()) == 1
    assert multiprocessing.active_children() == []


def test_closed_while_a_pass_goes_on() -> None:
    loading = Loading(Answering(), 1, __name__)
    answers = loading.answers(asked(*range(9)))
    next(answers)
    loading.close()
    with pytest.raises(RuntimeError, match="were closed while they loaded"):
        next(answers)
    assert multiprocessing.active_children() == []


class Augmented(list[Tensor]):
    """Adds noise to an item whenever it is read."""

    def __getitem__(self, row: int) -> Tensor:  # type: ignore[override]
        return super().__getitem__(row) + torch.randn(2) + np.random.rand()  # noqa: NPY002


def test_augmentation_is_decided_by_seed_and_number_of_the_batch(recwarn: pytest.WarningsRecorder) -> None:
    data = Augmented([torch.zeros(2)] * 8)
    rows = [torch.tensor([1, 2]), torch.tensor([1, 2]), torch.tensor([5])]
    found = []
    for workers in (0, 1, 2):
        with Streamed.of(data, torch.arange(8), workers=workers) as stream:
            whole = [batch.inputs for batch in stream.stream(iter(rows), seed=3)]
            later = [batch.inputs for batch in stream.stream(iter(rows[1:]), seed=3, first=1)]
            other = [batch.inputs for batch in stream.stream(iter(rows), seed=4)]
            again = [batch.inputs for batch in stream.at(iter(rows))]
        assert all(torch.equal(one, two) for one, two in zip(whole[1:], later, strict=True))
        assert not torch.equal(whole[0], whole[1])
        assert not torch.equal(whole[0], other[0])
        assert torch.equal(again[0], again[1])  # evaluation reads alike again
        found.append(torch.cat([*whole, *other, *again]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


SCRIPT = """
import multiprocessing, sys, torch, warnings
from steelyard.bilevel import Streamed

warnings.simplefilter("ignore")

class Squares:
    def __len__(self): return 6
    def __getitem__(self, row): return torch.tensor([float(row**2)])

def main():
    print("run", __name__)
    if "hidden" in sys.argv: sys.modules["cloudpickle"] = None
    data = [torch.tensor([float(row**2)]) for row in range(6)] if "plain" in sys.argv else Squares()
    stream = Streamed.of(data, torch.arange(6), chunk=2, workers=1)
    print("sums", [float(sum(piece.inputs.sum() for piece in stream.chunks(None))) for _ in range(3)])
    print("workers", *[one.pid for one in multiprocessing.active_children()])

"""
GUARD = 'if __name__ == "__main__":\n    main()\n'


def script(tmp_path: Path, text: str, *options: str, stdin: bool = False) -> subprocess.CompletedProcess[str]:
    place = tmp_path / "script.py"
    place.write_text(text)
    command = [sys.executable, *(["-"] if stdin else [str(place)]), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command,
        env=environment,
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=300,
        input=text if stdin else None,
    )


@pytest.mark.parametrize(
    ("end", "options", "stdin"),
    [
        ("main()\n", ["plain"], False),
        ("main()\n", [], False),
        ("main()\n", [], True),
        (GUARD, ["hidden"], False),
    ],
    ids=["no guard", "no guard, a class of its own", "as a notebook", "a guard"],
)
def test_scripts_and_notebooks(tmp_path: Path, end: str, options: list[str], stdin: bool) -> None:
    done = script(tmp_path, SCRIPT + end, *options, stdin=stdin)
    assert done.stderr == ""
    run, sums, workers = done.stdout.splitlines()
    assert run == "run __main__"  # once
    assert sums == "sums [55.0, 55.0, 55.0]"
    pids = [int(one) for one in workers.split()[1:]]
    assert len(pids) == 1
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)  # none is left


def test_what_cannot_be_done_is_said_in_a_line(tmp_path: Path) -> None:
    done = script(tmp_path, SCRIPT + "main()\n", "hidden")
    assert done.returncode == 1
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .endswith(
            "workers=1 with a data set of a class or function of a notebook, or of a script without a guard, needs "
            "cloudpickle, which is not installed: pip install cloudpickle; or put them into a module of their own, or "
            "use workers=0"
        )
    )
