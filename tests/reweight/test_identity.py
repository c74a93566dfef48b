"""What a run's journal knows it by: the same for the same, other text for anything else, on any number of ranks."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from steelyard.bilevel import Streamed, Truncated, WeightedLoss
from steelyard.checkpoint import CheckpointError, Journal
from steelyard.reweight import CubicBudget, IRMv1, Maple, Prior, Sqrt, VREx
from steelyard.reweight.identity import described, samples
from tests.support.environments import linear_run, spurious
from tests.support.shares import in_threads


def changed(name, batch):
    """The batch with one entry of a field changed, or two of them exchanged."""
    field, how = name.split()
    values = getattr(batch, field).clone()
    if how == "exchanged":
        values[[0, 1]] = values[[1, 0]]
    else:
        values.view(-1)[3] += 1
    return replace(batch, **{field: values})


OTHERS = {
    "steps": ({"steps": 3}, r"its steps is '2', here it is '3'"),
    "budget": ({"budget": 11}, r"its budget is '20', here it is '11'"),
    "schedule of the budget": (
        {"budget": CubicBudget(20, 10)},
        r"its budget is '20', here it is '.*CubicBudget\(start=",
    ),
    "seed": ({"seed": 5}, r"its seed is '0', here it is '5'"),
    "risk": ({"risk": Sqrt(IRMv1())}, r"its risk is '.*VREx.*IRMv1"),
    "clip": ({"clip": 3}, "its clip is"),
    "estimator": ({"estimator": Truncated(coupled="chunk")}, "its estimator is"),
    "prior": ({"prior": Prior(torch.full((60,), 0.4))}, "its prior is"),
    "optimizer": ({"weight_optimizer": partial(torch.optim.SGD, lr=0.1)}, "its weights' optimizer is .*SGD"),
    "inner steps": ({"inner": linear_run(steps=4)}, r"its inner\.steps is '3', here it is '4'"),
    "inner rate": ({"inner": linear_run(steps=3, lr=0.5)}, r"its inner\.optimizer is .*lr=1,.*lr=0\.5"),
}


def maple(**options):
    given = {"inner": linear_run(steps=3), "risk": Sqrt(VREx()), "budget": 20, "steps": 2}
    given |= options
    return Maple(given.pop("inner"), given.pop("risk"), **given)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    path = tmp_path_factory.mktemp("journal") / "run.safetensors"
    return path, maple().fit(spurious(60)[0], journal=Journal(path))


@pytest.mark.parametrize("name", OTHERS)
def test_other_settings_are_refused(begun, name):
    options, message = OTHERS[name]
    with pytest.raises(CheckpointError, match=f"{message}.*in another file, or after deleting this one") as caught:
        maple(**options).fit(spurious(60)[0], journal=Journal(begun[0]))
    assert str(begun[0]) in str(caught.value)


class Louder(Maple):
    """With a setting of its own, which a constructor names."""

    def __init__(self, *args, volume, **options):
        super().__init__(*args, **options)
        self.volume = volume


def test_a_setting_that_a_subclass_adds_belongs_to_the_identity(tmp_path):
    def fit(volume):
        louder = Louder(linear_run(steps=3), Sqrt(VREx()), budget=20, steps=2, volume=volume)
        return louder.fit(spurious(60)[0], journal=Journal(tmp_path / "run.safetensors"))

    assert fit(1) == fit(1)
    with pytest.raises(CheckpointError, match="its volume is '1', here it is '2'"):
        fit(2)


@pytest.mark.parametrize(
    "what", ["inputs changed", "inputs exchanged", "targets changed", "environment exchanged", "index exchanged"]
)
def test_other_samples_are_refused(begun, what):
    train = spurious(60)[0]
    with pytest.raises(CheckpointError, match=rf"its train\.{what.split()[0]} is"):
        maple().fit(changed(what, train), journal=Journal(begun[0]))


def test_other_numbers_of_samples_starts_and_validation_are_refused(begun):
    train = spurious(60)[0]
    with pytest.raises(CheckpointError, match=r"its train\.inputs is .*\(60, 2\).*\(50, 2\).*; 1 more differ"):
        maple().fit(train.take(torch.arange(50)), journal=Journal(begun[0]))
    with pytest.raises(CheckpointError, match=r"its validation\.inputs is None"):
        maple().fit(train, train, journal=Journal(begun[0]))
    with pytest.raises(CheckpointError, match=r"its state's \w+ is None"):
        maple().fit(train, state=maple().begin(train, torch.rand(60)), journal=Journal(begun[0]))


def test_the_same_is_gone_on_with(begun):
    path, result = begun
    assert maple(budget=20.0).fit(spurious(60)[0], journal=Journal(path)) == result


def test_who_names_the_computation_vouches_for_what_may_round_otherwise(tmp_path):
    path, train = tmp_path / "run.safetensors", spurious(60)[0]
    result = maple().fit(train, journal=Journal(path, identity={"recipe": "1"}))
    train.inputs[0, 0] += 1e-12
    assert maple().fit(train, journal=Journal(path, identity={"recipe": "1"})) == result
    with pytest.raises(CheckpointError, match=r"its train\.targets is"):
        maple().fit(changed("targets changed", train), journal=Journal(path, identity={"recipe": "1"}))


def test_lambdas_are_known_by_what_they_do():
    powers = [described(WeightedLoss(one)) for one in (lambda o, y: (o - y) ** 2, lambda o, y: (o - y) ** 4)]
    assert powers[0] != powers[1]


def test_samples_do_not_depend_on_the_shares():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        data = spurious(61, dtype=dtype)[0]
        data = replace(data, inputs=data.inputs.repeat(1, 2500))  # read in several pieces
        whole = samples("train", data)
        for size in (2, 5):
            for found in in_threads(size, lambda r, d=data: samples("train", d.take(r.share(61)), r)):
                assert found == whole
    streamed = samples("train", Streamed.of([*data.inputs], data.targets, environment=data.environment))
    assert streamed.pop("train.inputs") == "torch.bfloat16 (61, 5000)"
    assert streamed.items() < whole.items()


def test_every_exchange_of_two_values_shows():
    """Also of 0 and 1 in float64, of whose bits all but twelve are zeros."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool):
        values = torch.zeros(120, 2, dtype=dtype)
        values[60:] = 1
        found = {described(values)}
        for first in range(60):
            other = values.clone()
            other[[first, 119 - first]] = values[[119 - first, first]]
            found.add(described(other))
        assert len(found) == 61


def test_another_process_finds_the_same():
    what = (
        "from functools import partial; import torch, torch.nn.functional as F;"
        "from steelyard.reweight.identity import described, samples;"
        "from tests.support.environments import linear_run, spurious;"
        "print(described([linear_run(), partial(F.cross_entropy, reduction='none')]), samples('t', spurious(9)[0]))"
    )
    said = subprocess.run([sys.executable, "-c", what], capture_output=True, text=True, check=True, env=os.environ)
    here = described([linear_run(), partial(F.cross_entropy, reduction="none")])
    assert said.stdout.strip() == f"{here} {samples('t', spurious(9)[0])}"


def test_a_cycle_ends():
    class Loop:
        def __init__(self, me=None):
            self.me = self if me is None else me

    assert "..." in described(Loop())
