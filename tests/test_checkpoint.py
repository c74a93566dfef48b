"""The journal: stages, what is kept between them, stops, and a library user's own MAPLE run."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steelyard._support import _state
from steelyard.bilevel import Batch, WeightedLoss
from steelyard.checkpoint import CheckpointError, Journal
from steelyard.reweight import InnerRun, Maple, OuterStep, Reweighting, Sqrt, VREx

OBJECTIVE = WeightedLoss(partial(F.cross_entropy, reduction="none"))


class Counter:
    """A part with a state of one number."""

    def __init__(self) -> None:
        self.count = 0

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


def noise() -> list[float]:
    return [float(torch.rand(())), float(numpy.random.rand()), random.random()]  # noqa: NPY002 (the global one is meant)


def work(journal: Journal, dies_after: int = 100) -> list[list[float]]:
    """Two stages of three steps, each step drawing from the global generators."""
    drawn: list[list[float]] = []
    dropout = nn.Dropout()
    for _ in range(2):
        counter = Counter()
        with journal.stage(counter=counter, nothing=object()) as stage:
            for done in range(stage.done + 1, 4):
                counter.count += done
                drawn.append([*noise(), float(dropout(torch.ones(50)).sum())])
                if len(drawn) > dies_after:
                    raise KeyboardInterrupt
                stage.step(done, last=done == 3)
        assert counter.count == 6
    return drawn


def seeded() -> None:
    torch.manual_seed(0)
    numpy.random.seed(0)  # noqa: NPY002
    random.seed(0)


@pytest.mark.parametrize("every", [1, 2, 100])
@pytest.mark.parametrize("dies_after", range(6))
def test_global_generators_go_on_where_they_were(tmp_path: Path, every: int, dies_after: int) -> None:
    path = tmp_path / "journal.safetensors"
    with torch.random.fork_rng():
        seeded()
        whole = work(Journal(tmp_path / "whole.safetensors"))
        seeded()
        with pytest.raises(KeyboardInterrupt):
            work(Journal(path, every=every), dies_after)
        torch.manual_seed(99)  # what a new process would have
        random.seed(99)
        numpy.random.seed(99)  # noqa: NPY002
        if not path.exists():  # nothing was kept: it begins again
            seeded()
        rest = work(Journal(path, every=every))
    assert rest[-1:] == whole[-1:]
    assert [draw for draw in whole if draw in rest] == rest  # what was not passed over, in its order, the same numbers


def test_without_a_path_nothing_is_kept(tmp_path: Path) -> None:
    journal = Journal()
    with journal.stage(counter=Counter()) as stage:
        stage.step(1, last=True)
    with journal.stage(counter=Counter()) as stage:
        assert (stage.done, stage.finished) == (0, False)


def test_steps_that_are_worth_several_are_saved_as_often(tmp_path: Path) -> None:
    path = tmp_path / "j.safetensors"
    with Journal(path, every=10).stage(counter=Counter()) as stage:
        stage.step(1, worth=9)
        assert not path.exists()
        stage.step(2, worth=9)
        assert path.exists()
    with Journal(path).stage(counter=Counter()) as stage:
        assert stage.done == 2


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j.safetensors"
    with Journal(path, identity={"data": "a"}).stage(model=nn.Linear(2, 1)) as stage:
        stage.step(1, last=True)
    with pytest.raises(CheckpointError, match=r"its data is 'a', here it is 'b'"):
        Journal(path, identity={"data": "b"})
    with pytest.raises(CheckpointError, match=r"its data is 'a', here it is None"):
        Journal(path)
    with pytest.raises(CheckpointError, match=r"stage 0 does not fit this computation \(RuntimeError"):
        Journal(path, identity={"data": "a"}).stage(model=nn.Linear(3, 1))
    with pytest.raises(CheckpointError, match=r"it has the state of \['model'\], not of \['counter'\]"):
        Journal(path, identity={"data": "a"}).stage(counter=Counter())
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        Journal(tmp_path / "j.pt")
    with pytest.raises(ValueError, match="every must be"):
        Journal(every=0)


@pytest.mark.parametrize(
    "state",
    [
        None,
        {},
        {"identity": {}, "stages": {}, "note": {}},
        {"identity": {}, "stages": [1], "note": {}},
        {"identity": [], "stages": [], "note": {}},
    ],
)
def test_a_whole_file_of_another_shape_is_no_checkpoint(tmp_path: Path, state: object) -> None:
    path = tmp_path / "j.safetensors"
    _state.write(path, state, "steelyard.checkpoint.1")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        Journal(path)


def test_maple_of_a_library_user_goes_on_bit_for_bit(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 3, generator=generator)
    data = Batch.of(inputs, (inputs[:, 0] > 0).long(), environment=torch.arange(40) % 2)

    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Dropout(0.2), nn.Linear(4, 2))

    def fit(journal: Journal | None, dies_at: int = 100) -> Reweighting:
        def callback(step: OuterStep) -> None:
            if step.step == dies_at:
                raise KeyboardInterrupt

        inner = InnerRun(net, partial(torch.optim.Adam, lr=0.05), OBJECTIVE, steps=4, batch_size=8, restart=False)
        return Maple(inner, Sqrt(VREx()), budget=20, steps=5).fit(data, callbacks=[callback], journal=journal)

    whole = fit(None)
    for dies_at in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            fit(Journal(tmp_path / "maple.safetensors", every=1), dies_at)
    assert fit(Journal(tmp_path / "maple.safetensors", every=1)) == whole
    assert fit(Journal(tmp_path / "maple.safetensors", every=1)) == whole  # finished: nothing is left to do


def test_a_run_that_stopped_early_stays_stopped(tmp_path: Path) -> None:
    data = Batch.of(torch.randn(20, 2), torch.arange(20) % 2, environment=torch.arange(20) // 2 % 2)

    def fit(after: int) -> Reweighting:
        inner = InnerRun(lambda: nn.Linear(2, 2), partial(torch.optim.SGD, lr=0.1), OBJECTIVE, steps=2)
        journal = Journal(tmp_path / "maple.safetensors", every=1)
        maple = Maple(inner, VREx(), budget=10, steps=6)
        return maple.fit(data, callbacks=[lambda step: step.step == after], journal=journal)

    first = fit(2)
    assert len(first.history) == 3
    assert fit(5) == first


def test_the_old_name_of_the_module_is_kept() -> None:
    import steelyard.checkpoint
    import steelyard.journal

    assert {name: getattr(steelyard.journal, name) for name in steelyard.checkpoint.__all__} == {
        name: getattr(steelyard.checkpoint, name) for name in steelyard.checkpoint.__all__
    }
