"""What torch says of itself where its forward mode is first used does not reach the user."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.places import ROOT

# In a process of its own: torch loads the rules of its forward mode once.
_SCRIPT = """
import warnings
from functools import partial
import torch, torch.nn.functional as F
from steelyard.bilevel import Batch, Recorder, Truncated, WeightedLoss

net = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.{layer}, torch.nn.Linear(4, 3))
data = Batch.of(torch.randn(8, 5), torch.randint(0, 3, (8,)))
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
objective = WeightedLoss(partial(F.cross_entropy, reduction="none"))
warnings.simplefilter("error")
before = list(warnings.filters)
with Recorder(net, optimizer, objective, steps={steps}) as recorder:
    for _ in range({steps}):
        loss = recorder.loss(data, torch.ones(8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trajectory = recorder.trajectory()
Truncated({steps})(trajectory, lambda model: F.cross_entropy(model.eval()(data.inputs), data.targets))
assert warnings.filters == before
"""


@pytest.mark.parametrize(
    ("layer", "steps"),
    [("CELU()", 1), ("BatchNorm1d(4)", 2)],
    ids=["an operator by forward mode", "forward over reverse"],
)
def test_no_warning_of_torch_jit_reaches_the_user(layer: str, steps: int) -> None:
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = _SCRIPT.format(layer=layer, steps=steps)
    done = subprocess.run([sys.executable, "-c", script], env=settings, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "torch.jit" not in done.stderr
