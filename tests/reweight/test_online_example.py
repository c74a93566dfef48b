"""The example script does what it says."""

from __future__ import annotations

import re
import runpy

import pytest
import torch

from tests.support.places import EXAMPLES

SCRIPT = EXAMPLES / "online_reweighting.py"


def test_online_reweighting_finds_wrong_labels(capsys: pytest.CaptureFixture[str]) -> None:
    with torch.random.fork_rng():
        runpy.run_path(str(SCRIPT), run_name="__main__")
    weighed, plain, found = map(float, re.findall(r"\d+\.\d+|(?<=least )\d+", capsys.readouterr().out))
    assert weighed > 0.95 > plain
    assert found > 70
