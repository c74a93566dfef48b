"""The script for a GPU, on a CPU with small nets: its parts give rows, its time ends it, and both ways agree."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from benchmarks.gpu import TINY, Clock, measure, mlp, ours, random_batch, torchopt
from steelyard.bilevel import Truncated

CPU = torch.device("cpu")


def test_parts_give_positive_figures() -> None:
    rows = measure(TINY, CPU, math.inf, ["ceiling", "sweep"])
    assert [row["part"] for row in rows] == ["ceiling", "ceiling", "sweep"]
    figures = [value for row in rows for value in row.values() if isinstance(value, float)]
    assert len(figures) == 5
    assert all(value > 0 for value in figures)


def test_what_would_begin_after_the_time_is_named() -> None:
    rows = measure(TINY, CPU, 0.0, ["ceiling", "sweep"])
    assert [(row["what"], row.get("note")) for row in rows if row["part"] == "ceiling"][1:] == [
        ("the rest", "not measured: the time was spent")
    ]


@pytest.mark.parametrize("options", [{}, {"graphs": True}])
def test_the_ways_that_are_timed_agree(options: dict[str, bool]) -> None:
    pytest.importorskip("torchopt")
    torch.manual_seed(0)
    model = mlp(8, 5, 3)
    batches, held_out = list(random_batch(12, (5,), 3, CPU).chunks(4)), random_batch(4, (5,), 3, CPU)
    theirs = torchopt(copy.deepcopy(model), batches, held_out)
    torch.testing.assert_close(ours(model, batches, held_out, Truncated(3), **options), theirs, rtol=1e-4, atol=1e-7)


def test_a_clock_counts_calls() -> None:
    calls: list[int] = []
    assert Clock(CPU, 3)(lambda: calls.append(1)) >= 0
    assert len(calls) == 5
