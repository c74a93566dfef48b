"""Selection criteria: what they choose, and that they cannot see the test split."""

import dataclasses
import inspect
import math
from dataclasses import replace
from typing import get_type_hints

import pytest

from steelyard.experiments.runs.recipe import Recipe
from steelyard.experiments.training import selection
from steelyard.experiments.training.evaluation import Evaluation, SplitMetrics, Visible
from steelyard.experiments.training.regression import Errors
from steelyard.experiments.training.selection import (
    CRITERIA,
    ValidationExtrapolated,
    ValidationPenalty,
    best_on_test,
    criterion,
)


def seen(step: int, accuracies: tuple[float, float], irmv1: float = 0.0, train: float = 0.9) -> Visible:
    mean = sum(accuracies) / 2
    validation = SplitMetrics(
        *(mean, 0.5, accuracies, (0.5, 0.5)),
        irmv1=irmv1,
        vrex=1 - irmv1,
        group_right=(1,),
        group_count=(2,),
        class_accuracy=(1.0, accuracies[1], math.nan),
        errors=Errors(1 - mean, 0.1, 0.0, (1 - accuracies[0], 1 - accuracies[1], math.nan), (0.1,) * 3, (0.0,) * 3),
    )
    return Visible(step, SplitMetrics(train, 0.5, (train, train), (0.5, 0.5), 0.0, 0.0), validation)


HISTORY = [
    seen(1, (0.90, 0.70), irmv1=0.3),
    seen(2, (0.80, 0.74), irmv1=0.2),
    seen(3, (0.72, 0.71), irmv1=0.1),
    seen(4, (0.50, 0.50), irmv1=0.0, train=0.5),
]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("last", 3),
        ("validation_mean", 0),
        ("validation_worst_environment", 1),
        ("validation_worst_group_error", 1),
        ("validation_loss", 0),
        ("validation_worst_class", 1),  # of those that have samples
        ("validation_extrapolated", 2),  # 2 min - max: 0.50, 0.68, 0.70, 0.50
        ("validation_irmv1", 2),  # the last entry is below the floor
        ("validation_vrex", 0),
    ],
)
def test_what_each_criterion_chooses(name: str, place: int) -> None:
    assert CRITERIA[name](HISTORY) == place


def test_ties_go_to_the_first() -> None:
    assert CRITERIA["validation_mean"]([HISTORY[0], HISTORY[0]]) == 0


def test_the_floor_of_a_recipe_goes_to_the_criteria_that_have_one() -> None:
    assert criterion("validation_irmv1", 0.0)(HISTORY) == 3
    assert criterion("validation_irmv1", 0.6)(HISTORY) == 2
    assert criterion("validation_mean", 0.6) == CRITERIA["validation_mean"]
    with pytest.raises(ValueError, match="did you mean 'validation_mean'"):
        criterion("validation_men", 0.0)


@pytest.mark.parametrize("name", [name for name in CRITERIA if name != "last"])
def test_steps_that_diverged_are_passed_over(name: str) -> None:
    nan = float("nan")
    best = seen(9, (0.99, 0.99), irmv1=nan, train=0.99)
    diverged = replace(best, validation=replace(best.validation, loss=nan))
    first = CRITERIA[name](HISTORY)
    assert CRITERIA[name]([diverged, *HISTORY, diverged]) == first + 1
    assert CRITERIA[name]([diverged, diverged]) == 1  # no other step: the last
    whole = [Evaluation(one, SplitMetrics(0.9, 0.0), {}) for one in (diverged, HISTORY[0], diverged)]
    assert best_on_test(whole, 0.0) == 1


def test_one_environment_has_no_penalty_to_choose_by() -> None:
    alone = [replace(one, validation=replace(one.validation, irmv1=None, vrex=None)) for one in HISTORY]
    assert (CRITERIA["validation_irmv1"](alone), CRITERIA["validation_vrex"](alone)) == (3, 3)


def test_the_default_floor_of_a_recipe_keeps_a_constant_prediction_out() -> None:
    constant = seen(5, (0.5, 0.5), irmv1=0.0, train=0.51)
    assert criterion("validation_irmv1", Recipe.train_floor)([HISTORY[2], constant]) == 0


def test_no_step_above_the_floor_takes_the_last() -> None:
    assert ValidationPenalty(floor=0.99)(HISTORY) == 3


@pytest.mark.parametrize("beta", [0.0, 0.5, 7.0])
def test_extrapolated_is_the_worst_affine_mixture(beta: float) -> None:
    for entry in HISTORY:
        a = entry.validation.environment_accuracy
        corners = [(1 + beta) * a[0] - beta * a[1], (1 + beta) * a[1] - beta * a[0]]
        assert ValidationExtrapolated(beta).score(entry) == pytest.approx(min(corners))


def test_criteria_cannot_see_test_figures() -> None:
    names = {field.name for field in dataclasses.fields(Visible)}
    assert names == {"step", "train", "validation"}
    for choose in CRITERIA.values():
        hints = get_type_hints(type(choose).__call__)
        assert hints["history"].__args__ == (Visible,)


def test_only_best_on_test_takes_whole_evaluations() -> None:
    takers = [
        name
        for name, member in inspect.getmembers(selection, inspect.isfunction)
        if member.__module__ == selection.__name__ and "Evaluation" in str(inspect.signature(member))
    ]
    assert takers == ["best_on_test"]


def test_choices_do_not_move_when_test_figures_do() -> None:
    def history(test: list[float]) -> list[Evaluation]:
        return [Evaluation(v, SplitMetrics(t, 0.0), {}) for v, t in zip(HISTORY, test, strict=True)]

    low, high = history([0.1, 0.2, 0.3, 0.9]), history([0.9, 0.1, 0.0, 0.0])
    for choose in CRITERIA.values():
        assert choose([e.visible for e in low]) == choose([e.visible for e in high])
    assert (best_on_test(low, 0.0), best_on_test(high, 0.0)) == (3, 0)
    assert best_on_test(low, 0.68) == 2  # the last one's training accuracy is too low to count
    assert best_on_test(low, 1.0) == 3


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'irmv1'"):
        ValidationPenalty("irmv2")
    with pytest.raises(ValueError, match="beta"):
        ValidationExtrapolated(-1.0)
