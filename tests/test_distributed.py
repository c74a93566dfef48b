"""Two processes give what one gives; a rank that ends, ends the run; and the run goes on from its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from steelyard import _state

from .ranked import CASES, all_cases, alone, started


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    with started(2, folder, all_cases) as processes:
        for process in processes:
            process.join(120)
        errors = "".join(path.read_text() for path in folder.glob("error.*"))
        assert [process.exitcode for process in processes] == [0, 0], errors
    return [_state.read(folder / f"found.{rank}", "found") for rank in (0, 1)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_give_what_one_gives(name: str, found: list[dict[str, Any]]) -> None:
    expected = alone(name)
    for of_rank in found:
        assert set(of_rank[name]) == set(expected)
        for what, value in expected.items():
            tolerance = 1e-6 if "differences" in what else 1e-11
            torch.testing.assert_close(
                of_rank[name][what], value, rtol=tolerance, atol=tolerance, msg=lambda m, what=what: f"{what}: {m}"
            )
