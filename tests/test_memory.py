"""Memory of long runs, and what is left behind by work that ends early."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steelyard.bilevel import Batch, Recorder, WeightedLoss
from steelyard.experiments.methods import DFR, InvRat
from steelyard.experiments.training.trainer import OptimizerSettings, Training
from steelyard.reweight import InnerRun
from tests.support.biased import biased_problem

OBJECTIVE = WeightedLoss(partial(F.cross_entropy, reduction="none"))
DATA = Batch.of(torch.randn(24, 3), torch.arange(24) % 3, environment=torch.arange(24) // 3 % 2)

LONG = """
import json, os, sys, torch
from functools import partial
import torch.nn.functional as F
from torch import nn
from steelyard.bilevel import Batch, WeightedLoss
from steelyard.checkpoint import Journal
from steelyard.reweight import InnerRun, Maple, VREx

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
data = Batch.of(torch.randn(16, 2, generator=generator), torch.arange(16) % 2, environment=torch.arange(16) // 2 % 2)
objective = WeightedLoss(partial(F.cross_entropy, reduction="none"))
inner = InnerRun(lambda: nn.Linear(2, 2), partial(torch.optim.SGD, lr=0.1), objective, steps=1)
pages, resident, history = os.sysconf("SC_PAGE_SIZE"), [], 0

def measure(step):  # the history is meant to grow: what is measured is everything else
    global history
    step.row.clear()
    step.row["outer_loss"] = 0.0
    history += sys.getsizeof(step.row) + 8  # an emptied row, and the list's reference to it
    if step.step % 500 == 499:
        resident.append(int(open("/proc/self/statm").read().split()[1]) * pages - history)

Maple(inner, VREx(), budget=8, steps=10_000).fit(data, callbacks=[measure])
print(json.dumps(resident))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_ten_thousand_outer_steps_do_not_grow() -> None:
    """Least-squares slope of resident memory less history, over the last 9,000 steps: below 100 bytes a step."""
    done = subprocess.run([sys.executable, "-c", LONG], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    resident = torch.tensor(json.loads(done.stdout)[1:], dtype=torch.float64)
    steps = 500 * torch.arange(len(resident), dtype=torch.float64)
    centred = steps - steps.mean()
    slope = float((centred * resident).sum() / centred.square().sum())
    print(f"{slope:.1f} bytes a step, {resident[0] / 2**20:.1f} to {resident[-1] / 2**20:.1f} MiB")
    assert slope < 100


def hooks(optimizer: torch.optim.Optimizer) -> int:
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


def test_an_abandoned_recorder_leaves_model_and_optimizer_as_they_were() -> None:
    """In the middle of a run: with a loss pending, a step recorded, an exception in between."""

    def train(recorded: bool) -> list[torch.Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3))
            optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
            if recorded:
                with pytest.raises(KeyboardInterrupt), Recorder(model, optimizer, OBJECTIVE, steps=2) as recorder:
                    for step in range(3):
                        loss = recorder.loss(DATA, torch.ones(24))
                        if step == 2:
                            raise KeyboardInterrupt
                        optimizer.zero_grad()
                        loss.backward()
                        optimizer.step()
            else:
                for step in range(3):
                    loss = OBJECTIVE(model, DATA, torch.ones(24))
                    if step < 2:
                        optimizer.zero_grad()
                        loss.backward()
                        optimizer.step()
            assert hooks(optimizer) == 0
            assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
            optimizer.zero_grad()
            OBJECTIVE(model, DATA, torch.ones(24)).backward()
            optimizer.step()
            return [value.clone() for value in model.state_dict().values()]

    assert all(torch.equal(a, b) for a, b in zip(train(True), train(False), strict=True))


def test_a_recorder_that_is_forgotten_without_with_keeps_nothing_alive_once_closed() -> None:
    model = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(model, optimizer, OBJECTIVE)
    batch = DATA.take(torch.arange(5))
    held = weakref.ref(batch)
    recorder.loss(batch, torch.ones(5))
    recorder.close()
    del batch
    gc.collect()
    assert held() is None
    assert hooks(optimizer) == 0


def test_an_inner_run_that_fails_releases_its_hooks_and_the_random_state() -> None:
    made: list[torch.optim.Optimizer] = []

    def optimizer(parameters):  # type: ignore[no-untyped-def]
        made.append(torch.optim.SGD(parameters, lr=0.1))
        return made[-1]

    class Failing(WeightedLoss):
        def __call__(self, model: nn.Module, batch: Batch, weight: torch.Tensor) -> torch.Tensor:
            raise KeyboardInterrupt

    inner = InnerRun(lambda: nn.Linear(3, 3), optimizer, Failing(OBJECTIVE.loss), steps=2)
    before = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        inner(DATA, torch.ones(24))
    assert torch.equal(before, torch.get_rng_state())
    assert [hooks(one) for one in made] == [0]


@pytest.mark.parametrize("method", [InvRat, DFR])
def test_methods_that_hook_a_layer_take_the_hook_off(method: type, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = biased_problem(n=40)
    models: list[nn.Module] = []
    build = type(problem).model

    def remember(self):  # type: ignore[no-untyped-def]
        models.append(build(self))
        return models[-1]

    monkeypatch.setattr(type(problem), "model", remember)
    training = Training(steps=2, evaluate_every=2, optimizer=OptimizerSettings("sgd", 0.1))

    def fails(step: int, model: nn.Module, extra: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method(training=training).fit(problem, fails)
    assert models
    assert not any(module._forward_pre_hooks for model in models for module in model.modules())
