"""NaNs, infinities, and sizes at the edge: each an error that says where, or a documented result."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steelyard import reweight, selectors
from steelyard._support._finite import all_finite, named_culprits, some_ids
from steelyard.bilevel import Batch, Recorder, WeightedLoss
from steelyard.experiments.errors import DataError
from steelyard.experiments.methods import ERM, JTT, GroupDRO, IRMv1
from steelyard.experiments.training.problem import Problem
from steelyard.experiments.training.trainer import Learner, OptimizerSettings, Training
from steelyard.reweight import InnerRun, Maple, Reweighting, VREx
from tests.support.biased import biased_problem

OBJECTIVE = WeightedLoss(partial(F.cross_entropy, reduction="none"))
PROBLEM = biased_problem(n=40)
SHORT = Training(steps=3, evaluate_every=3, optimizer=OptimizerSettings("sgd", 0.1))
PARTS = ("train", "validation")
NAN, INF = float("nan"), float("inf")


def ignore(step: int, model: nn.Module, extra: object) -> None:
    """Observe nothing."""


def with_train(problem: Problem, **fields: torch.Tensor | None) -> Problem:
    return replace(problem, splits=replace(problem.splits, train=replace(problem.splits.train, **fields)))


def learner(**options: object) -> Learner:
    return Learner(PROBLEM.model(), PROBLEM.loss, SHORT, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_bad_input_is_named_by_its_id(value: float) -> None:
    inputs = PROBLEM.splits.train.inputs.clone()
    inputs[[3, 17], 1] = value
    rows = torch.arange(40).flip(0)
    broken = with_train(PROBLEM, inputs=inputs[rows], index=rows + 100)
    with pytest.raises(FloatingPointError, match=r"step 1: the loss of samples 1.*; NaN .* inputs of samples 117, 103"):
        ERM(training=SHORT).fit(broken, ignore)


def test_a_bad_parameter_is_named_and_nothing_moves() -> None:
    one = learner()
    with torch.no_grad():
        next(one.model.parameters())[0, 0] = NAN
    before = {name: value.clone() for name, value in one.model.state_dict().items()}
    with pytest.raises(FloatingPointError, match=r"NaN or infinite: '1\.weight' of the model; a smaller learning rate"):
        one.step(PROBLEM.splits.train)
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def test_a_gradient_that_is_not_finite_stops_before_the_step() -> None:
    """The loss is finite, sqrt(0), its gradient is not."""
    rule = reweight.Custom(lambda losses, batch: torch.ones_like(losses))
    rule.mean = lambda losses, batch: (losses - losses.detach()).sum().abs().sqrt()  # type: ignore[method-assign]
    one = learner(rule=rule)
    before = [parameter.clone() for parameter in one.model.parameters()]
    with pytest.raises(FloatingPointError, match=r"step 1: the loss is 0 and its gradient not.*gradient of '1"):
        one.step(PROBLEM.splits.train)
    assert all(torch.equal(a, b) for a, b in zip(before, one.model.parameters(), strict=True))
    assert one.done == 0


@pytest.mark.parametrize("weight", [NAN, INF])
def test_a_bad_weight_is_told_from_a_bad_loss(weight: float) -> None:
    rule = reweight.Custom(lambda losses, batch: torch.full_like(losses, weight))
    with pytest.raises(FloatingPointError, match="the step is nan, that of each sample finite, on samples 0"):
        learner(rule=rule).step(PROBLEM.splits.train)


def test_a_finite_gradient_with_an_infinite_sum_is_finite() -> None:
    huge = torch.full((4,), 3e38)
    assert not torch.isfinite(huge.sum())
    assert all_finite([huge])
    assert not all_finite([huge, torch.tensor([NAN])])
    assert not all_finite([torch.tensor([INF]), torch.tensor([-INF])])
    assert all_finite([])


def test_culprits_and_ids() -> None:
    assert some_ids(torch.arange(5)) == "samples 0, 1, 2, 3, 4"
    assert named_culprits(nn.Linear(2, 1), torch.zeros(3, 2), torch.arange(3)) == ""
    assert named_culprits(nn.Linear(2, 1), torch.zeros(3, 2, dtype=torch.long), torch.arange(3)) == ""
    norm = nn.BatchNorm1d(2)
    norm.running_mean[0] = INF  # type: ignore[index]
    assert named_culprits(norm, torch.zeros(1, 2), torch.arange(1)) == "'running_mean' of the model"


def small_maple(data: Batch, steps: int = 2, rate: float = 0.1, **options: object) -> Reweighting:
    inner = InnerRun(lambda: nn.Linear(2, 2), partial(torch.optim.SGD, lr=rate), OBJECTIVE, steps=3)
    return Maple(inner, VREx(), steps=steps, **{"budget": 20, **options}).fit(data)  # type: ignore[arg-type]


def test_maple_stops_with_the_outer_step_and_leaves_its_state_as_it_was() -> None:
    data = PROBLEM.splits.train
    inner = InnerRun(lambda: nn.Linear(2, 2), partial(torch.optim.SGD, lr=1e30), OBJECTIVE, steps=3)
    maple = Maple(inner, VREx(), budget=20, steps=2)
    state = maple.begin(data)
    before = state.state_dict()
    with pytest.raises(FloatingPointError, match=r"outer step 1: the outer loss is (nan|inf); .* finite: .*diverged"):
        maple.fit(data, state=state)
    after = state.state_dict()
    for name in ("weights", "probabilities", "generator"):
        assert torch.equal(before[name], after[name])
    assert (after["step"], after["history"]) == (0, [])


@pytest.mark.parametrize("field", ["inputs", "targets"])
@pytest.mark.parametrize("held_out", [False, True])
def test_maple_names_the_samples_that_are_not_finite(field: str, held_out: bool) -> None:
    good = replace(PROBLEM.splits.train, targets=PROBLEM.splits.train.targets.float())
    values = getattr(good, field).clone()
    values[5:12] = NAN
    bad = replace(good, **{field: values}, index=good.index + 100)
    inner = InnerRun(lambda: nn.Linear(2, 1), partial(torch.optim.SGD, lr=0.1), WeightedLoss(squared), steps=3)
    maple = Maple(inner, VREx(), budget=40, steps=2, learn="weights")
    where = "validation" if held_out else "train"
    message = rf"outer step 1: .* nan; NaN or infinite in {where}: the {field} of samples 105, 106, .* \(7 of them\)"
    with pytest.raises(FloatingPointError, match=message):
        maple.fit(good if held_out else bad, bad if held_out else None)


def squared(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs[:, 0] - targets).square()


def test_maple_at_the_edges_of_its_budget() -> None:
    data = PROBLEM.splits.train
    with pytest.raises(ValueError, match="budget must be > 0 samples to train on, got 0"):
        small_maple(data, budget=0)
    with pytest.raises(ValueError, match="budget"):
        small_maple(data, budget=41)
    everything = small_maple(data, budget=40, learn="probabilities")  # K = n keeps every sample
    assert everything.probabilities.tolist() == [1.0] * 40
    with pytest.raises(ValueError, match="1000 masks in a row kept fewer than 1 sample"):
        small_maple(data, budget=1e-6)


def test_all_zero_weights_and_masks() -> None:
    inner = InnerRun(lambda: nn.Linear(2, 2), partial(torch.optim.SGD, lr=0.1), OBJECTIVE, steps=1)
    with pytest.raises(ValueError, match="no sample is left to train on: all 40 weights are 0; raise the budget"):
        inner(PROBLEM.splits.train, torch.zeros(40))
    with pytest.raises(ValueError, match="no sample can be drawn"):
        Reweighting(torch.ones(3), torch.zeros(3)).sampler()
    assert not Reweighting(torch.ones(3), torch.zeros(3)).sample_mask(torch.Generator()).any()


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(39), "weight has 39|same first dimension"),
        (torch.full((40,), NAN), "weight has 40 entries that are NaN"),
        (-torch.ones(40), "weight must be >= 0"),
    ],
)
def test_inner_weights_that_do_not_fit(weight: torch.Tensor, message: str) -> None:
    inner = InnerRun(lambda: nn.Linear(2, 2), partial(torch.optim.SGD, lr=0.1), OBJECTIVE, steps=1)
    with pytest.raises(ValueError, match=message):
        inner(PROBLEM.splits.train, weight)


@pytest.mark.parametrize("weight", [torch.ones(3), torch.ones(4, dtype=torch.long), torch.ones(4, 1)])
def test_recorder_weights_of_another_length_or_dtype(weight: torch.Tensor) -> None:
    model = nn.Linear(2, 2)
    data = Batch.of(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))
    with (
        Recorder(model, torch.optim.SGD(model.parameters(), lr=0.1), OBJECTIVE) as recorder,
        pytest.raises(ValueError, match=r"weight must be a floating-point tensor of shape \(4,\)"),
    ):
        recorder.loss(data, weight)


def test_ids_that_repeat_or_are_out_of_range() -> None:
    data = PROBLEM.splits.train
    with pytest.raises(ValueError, match="train must hold distinct samples, got 41 samples with 40 ids"):
        small_maple(data.take(torch.cat([torch.arange(40), torch.tensor([3])])))
    with pytest.raises(ValueError, match="index holds global sample ids >= 0, got -1"):
        Batch(data.inputs, data.targets, torch.arange(40) - 1)
    with pytest.raises(IndexError, match="out of (range|bounds)"):
        data.take(torch.tensor([40]))


def test_one_environment_an_empty_group_a_single_class() -> None:
    alone = replace(PROBLEM.splits.train, environment=torch.zeros(40, dtype=torch.long))
    with pytest.raises(ValueError, match="the training split has no sample of the environment 'second'"):
        replace(PROBLEM.splits, train=alone)
    parts = {name: replace(getattr(PROBLEM.splits, name), environment=alone.environment) for name in PARTS}
    only = replace(PROBLEM, splits=replace(PROBLEM.splits, environments=("only",), **parts))
    with pytest.raises(ValueError, match="environments"):
        IRMv1(training=SHORT).fit(only, ignore)
    with pytest.raises(ValueError, match="environments"):
        small_maple(alone)
    gap = with_train(PROBLEM, group=torch.where(PROBLEM.splits.train.group == 1, 0, PROBLEM.splits.train.group))
    with pytest.raises(DataError, match=r"group 1 has no training sample \(counts"):
        GroupDRO(training=SHORT).fit(gap, ignore)
    single = with_train(PROBLEM, targets=torch.ones(40, dtype=torch.long))
    ERM(training=SHORT).fit(single, ignore)  # it learns the constant
    JTT(identification=replace(SHORT, steps=50), training=SHORT).fit(single, ignore)  # an empty error set: it is ERM


@pytest.mark.parametrize("score", [torch.tensor([1.0, NAN, 2.0]), torch.tensor([1.0, INF, 2.0])])
def test_a_score_that_is_not_finite(score: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="1 entries that are NaN or infinite"):
        selectors.top_k(score, 2)
