"""A budget in (0, 1) is a share of the samples, from 1 on a number of them, and None all: everywhere."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch

from steelyard.experiments import methods
from steelyard.experiments.errors import RecipeError
from steelyard.experiments.runs.recipe import load_recipe
from steelyard.reweight import (
    ConstraintSet,
    CubicBudget,
    Maple,
    Prior,
    TopQ,
    VREx,
    budget_of,
    keep_probabilities,
    pool,
)
from tests.support.environments import linear_run, spurious

TRAIN = spurious(40)[0]
MEANT = [  # a budget, and what it keeps of 40 samples
    (0.5, 20.0),
    (0.25, 10.0),
    (0.999, 39.96),
    (1.0, 1.0),
    (1, 1.0),
    (1.5, 1.5),
    (20, 20.0),
    (numpy.float32(0.5), 20.0),
    (numpy.float64(0.5), 20.0),
    (numpy.int64(7), 7.0),
    (torch.tensor(0.5), 20.0),
    (CubicBudget(0.5, 0.5), 20.0),
    (CubicBudget(8, 8), 8.0),
    (lambda progress: 0.75, 30.0),
]


def maple(**options):
    return Maple(linear_run(steps=2), VREx(), **{"budget": 10, "steps": 1, **options})


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(("budget", "kept"), MEANT, ids=lambda value: getattr(value, "__name__", str(value)))
def test_what_a_budget_means(budget, kept):
    constraints = ConstraintSet(budget)
    assert constraints.budget_at(0.3, 40) == pytest.approx(kept)
    s = constraints.project_probabilities(torch.rand(40, dtype=torch.float64), 0.3)
    assert float(s.sum()) == pytest.approx(kept)
    if not callable(budget):
        assert budget_of(budget, 40) == pytest.approx(kept)
        scores = torch.randn(40, dtype=torch.float64)
        pi = keep_probabilities(scores, budget)
        assert float(pi.sum()) == pytest.approx(kept)
        assert float(pool([pi, pi], budget).sum()) == pytest.approx(kept)
        strata = torch.arange(40) % 3
        assert float(keep_probabilities(scores, budget, strata=strata).sum()) == pytest.approx(kept)
        assert float(keep_probabilities(scores, budget, strata=strata, balanced=True).sum()) == pytest.approx(kept)


@pytest.mark.parametrize(("budget", "kept"), [(0.5, 20.0), (20, 20.0), (CubicBudget(0.75, 0.5), 20.0)], ids=str)
def test_a_share_is_learned_as_its_number_is(budget, kept):
    result = maple(budget=budget).fit(TRAIN)
    assert float(result.probabilities.sum()) == pytest.approx(kept, abs=1e-4)
    assert result.history[0]["budget"] == (30.0 if callable(budget) else kept)


def test_a_share_and_its_number_are_one_run():
    one, two = maple(budget=0.5, steps=2).fit(TRAIN), maple(budget=20, steps=2).fit(TRAIN)
    assert one == two


def test_an_upper_bound_may_be_a_share():
    result = maple(budget=0.5, equality=False).fit(TRAIN)
    assert float(result.probabilities.sum()) <= 20 + 1e-4


def test_a_prior_moves_to_a_share():
    prior = Prior(torch.linspace(0.1, 0.9, 40, dtype=torch.float64))
    assert float(prior.under(ConstraintSet(0.25), 0.0).sum()) == pytest.approx(10)
    few = Prior(torch.linspace(0.1, 0.9, 3, dtype=torch.float64))  # of which a tenth is less than one sample
    assert float(few.under(ConstraintSet(0.1), 0.0).sum()) == pytest.approx(0.3)


def test_none_is_all_samples_where_only_weights_are_learned():
    result = maple(budget=None, learn="weights").fit(TRAIN)
    assert torch.equal(result.probabilities, torch.ones(40, dtype=result.probabilities.dtype))
    assert result.history[0]["budget"] == 40
    assert Maple(linear_run(steps=2), VREx(), steps=1, learn="weights").fit(TRAIN) == result  # it may be left out
    assert float(ConstraintSet(None).project_probabilities(torch.zeros(40)).sum()) == 40
    for learn in ("both", "probabilities"):
        with pytest.raises(TypeError, match=r"budget must be a real number, got None: give how many .* their share"):
            maple(budget=None, learn=learn)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: CubicBudget(1.0, 0.3), r"start is 1\.0 and target 0\.3: 0\.3 would be a share"),
        (lambda: CubicBudget(0.3, 20), "both as shares below 1, or both as numbers"),
        (lambda: ConstraintSet(lambda p: 2 - 1.5 * p).budget_at(1.0, 9), r"budget at progress 0 is 2\.0 and at 1 0\.5"),
        (lambda: ConstraintSet(lambda p: 0.5 + p).budget_at(0.9, 9), r"progress 0 is 0\.5 and at 0\.9 1\.4"),
        (lambda: ConstraintSet(0.5).budget_at(0.0), "budget is 0.5, a share of the samples: give n"),
        (lambda: ConstraintSet(None).budget_at(0.0), "give n"),
        (lambda: ConstraintSet(lambda p: -1.0).budget_at(0.0, 4), "budget must be finite and >= 0.0, got -1.0"),
        (lambda: budget_of(float("nan"), 4), "budget must be finite"),
        (lambda: TopQ(0.5), r"q is a number of samples, >= 1, got 0\.5; .* take CVaR\(0\.5\)"),
    ],
)
def test_shares_and_numbers_are_not_mixed(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.usefixtures("unchecked_shapes")
def test_recipes_take_shares_too():
    recipe = load_recipe("coloured_digits/maple", ["method.budget=0.3"])
    assert recipe.method.budget == 0.3
    assert load_recipe("coloured_digits/maple", ["method.budget=324"]).method.budget == 324
    assert methods.Maple(learn="weights").budget is None
    assert methods.Subset(budget=0.5, prior=load_recipe("coloured_digits/subset").method.prior).budget == 0.5
    for wrong in ("0", "-3", "'a'", "true"):
        with pytest.raises(RecipeError, match="budget"):
            load_recipe("coloured_digits/maple", [f"method.budget={wrong}"])
    with pytest.raises(TypeError, match=r"budget must be an int, got 1\.5"):
        methods.Subset(budget=1.5, prior=load_recipe("coloured_digits/subset").method.prior)


@pytest.mark.parametrize("budget", [0.4, 20, None, CubicBudget(0.5, 0.25), lambda progress: 8 - 4 * progress])
def test_a_budget_as_it_was_given_asks_for_no_number_of_samples(budget: Any) -> None:
    """Ranks compare it before they know how many samples all of them have."""
    given = ConstraintSet(budget).given_budget_at(0.5)
    assert given == (budget(0.5) if callable(budget) else budget)
    assert ConstraintSet(given).budget_at(0.5, 40) == ConstraintSet(budget).budget_at(0.5, 40)
