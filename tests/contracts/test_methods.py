"""What every method of `steelyard.experiments` has in common: its page, a seed that decides, no test figure."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import replace
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from steelyard.experiments.methods import Method
from steelyard.experiments.methods.maple import Maple
from steelyard.experiments.priors.el2n import EL2N
from steelyard.experiments.priors.out_of_fold import OutOfFoldSettings
from steelyard.experiments.priors.settings import PriorSettings
from steelyard.experiments.training.adversarial import PGD
from steelyard.experiments.training.problem import Fitted, Problem
from steelyard.experiments.training.ranges import FIXED, Range
from steelyard.experiments.training.trainer import OptimizerSettings, Training
from tests.support.biased import biased_problem

KINDS = {kind.__name__: kind for kind in get_args(Method)}
SHORT = Training(steps=4, batch_size=40, evaluate_every=2, optimizer=OptimizerSettings("sgd", 0.1))
MAPLE = Maple(budget=0.5, steps=2, folds=2, inner=replace(Maple(budget=0.5).inner, steps=3))
GIVEN: dict[str, dict[str, Any]] = {
    "DONE": {"attack": PGD(epsilon=0.1, low=-9.0, high=9.0, steps=2)},
    "SparseIRM": {"training": replace(SHORT, optimizer=OptimizerSettings("adam", 0.1))},
    "BayesianIRM": {"draws": 2},
    "DFR": {"retrains": 1, "strengths": (0.1,)},
    "LDAM": {"reweight_at": 2},
    "Maple": {field.name: getattr(MAPLE, field.name) for field in dataclasses.fields(MAPLE)},
    "MRM": {"sparsity": 0.0},
    "OrderedSGD": {"q": 8},
    "PDE": {"warm_up": 2, "every": 1},
    "Online": {"epochs": 1, "clean_size": 20},
    "RefinedMaple": {"maple": MAPLE, "steps": 4, "one_hump": "maple"},
    "SelfCleaning": {"scoring": OutOfFoldSettings(folds=2, repeats=2, readings=2, training=SHORT)},
    "Subset": {"budget": 0.5, "prior": PriorSettings(scores=(EL2N(models=1, training=SHORT),))},
}
"""Settings without which a method is not, or takes long."""
OURS = {"ERM", "RefinedMaple", "Subset"}  # of no paper, or of all
PROBLEM = biased_problem(n=120, hidden=4)


def short(name: str) -> Any:
    """The method with a handful of steps a stage."""
    kind = KINDS[name]
    stages = {field.name: SHORT for field in dataclasses.fields(kind) if get_type_hints(kind)[field.name] is Training}
    return kind(**{**stages, **GIVEN.get(name, {})})


def fitted(name: str, problem: Problem = PROBLEM) -> tuple[Fitted, list[int]]:
    steps: list[int] = []

    def observe(step: int, model: nn.Module, extra: Any) -> None:
        assert all(isinstance(value, (int, float)) for value in extra.values())
        steps.append(step)

    return short(name).fit(problem, observe), steps


def parameters(found: Fitted) -> Tensor:
    return torch.cat([p.detach().flatten() for p in found.model.parameters()])


@pytest.mark.parametrize("name", KINDS)
def test_its_page_says_what_it_needs_and_where_it_is_from(name: str) -> None:
    page = KINDS[name].__doc__ or ""
    assert "Labels needed:" in page
    if name not in OURS:
        assert re.search(r"arXiv:|\b(19|20)\d\d\b", page)
    listed = page.partition("Attributes:")[2]
    own = {field.name for field in dataclasses.fields(KINDS[name])} - {"name", "training", "penalty"}
    assert {field for field in own if not re.search(rf"\b{field}\b", listed)} == set()


@pytest.mark.parametrize("name", KINDS)
def test_every_number_has_a_range_beside_it(name: str) -> None:
    hints = get_type_hints(KINDS[name], include_extras=True)
    numbers = {
        field.name for field in dataclasses.fields(KINDS[name]) if get_type_hints(KINDS[name])[field.name] is float
    }
    bare = {
        field
        for field in numbers
        if not any(isinstance(one, Range) or one == FIXED for one in get_args(hints[field])[1:])
    }
    assert bare == set()


def test_names_are_different_and_lower_case() -> None:
    names = [get_args(get_type_hints(kind)["name"])[0] for kind in KINDS.values()]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in names)


@pytest.mark.parametrize("name", KINDS)
def test_a_seed_decides_and_the_last_step_is_observed(name: str) -> None:
    (first, steps), (second, _) = fitted(name), fitted(name)
    (other, _) = fitted(name, replace(PROBLEM, seed=1))
    assert torch.equal(parameters(first), parameters(second))
    assert not torch.equal(parameters(first), parameters(other))
    assert parameters(first).isfinite().all()
    assert steps == sorted(set(steps))
    assert steps[-1] == short(name).last_step


@pytest.mark.parametrize("name", KINDS)
def test_the_test_split_is_not_read(name: str) -> None:
    test = PROBLEM.splits.test
    spoiled = replace(test, inputs=torch.ones_like(test.inputs), targets=1 - test.targets)
    without = replace(PROBLEM, splits=replace(PROBLEM.splits, test=spoiled))
    assert torch.equal(parameters(fitted(name, without)[0]), parameters(fitted(name)[0]))


@pytest.mark.parametrize("name", KINDS)
def test_weights_are_a_number_a_training_sample(name: str) -> None:
    weights = fitted(name)[0].reweighting
    if weights is not None:
        assert weights.weights.shape == weights.probabilities.shape == (120,)
        assert weights.expected_weights.isfinite().all()
        assert (weights.expected_weights >= 0).all()
