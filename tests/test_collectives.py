"""What is counted of 64 simulated ranks is what real ones would send."""

from __future__ import annotations

import pytest
import torch

from benchmarks.collectives import FEATURES, SHARES, Simulated, counted, line
from steelyard.distributed import Ranks


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.collectives.SHARES", (32, 64))


@pytest.mark.parametrize("size", [2, 16])
def test_calls_stand_still_and_bytes_grow_with_the_samples_of_all(size: int) -> None:
    found = line(size)
    assert found["calls"] == line(2 * size)["calls"]
    assert found["step bytes a sample of the share"] == 4 * size  # one float of output, of every rank's samples


def test_gradients_are_counted() -> None:
    parameters = (FEATURES + 1) * 64 + 65
    one, three = counted(4, 32, 1), counted(4, 32, 3)
    a_step = (three.sent["sum"] - one.sent["sum"]) / 2
    assert a_step >= 4 * parameters * 3  # two inner steps and the outer gradient


def test_a_budget_that_is_a_share_is_one_on_several_ranks() -> None:
    assert counted(3, 32, 1).calls["stack"] > 0  # its budget is 0.3


def test_simulated_ranks_are_ranks() -> None:
    assert issubclass(Simulated, Ranks)
    assert torch.tensor(SHARES).diff() > 0
