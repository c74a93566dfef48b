"""Ranges stand beside the fields, every draw is in them, and the page is made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from random import Random
from typing import Annotated, get_args

import pytest

from steelyard.experiments.errors import RecipeError
from steelyard.experiments.methods import (
    CORAL,
    JTT,
    LDAM,
    LISA,
    MMD,
    ClassBalanced,
    CVaRDRO,
    Focal,
    GroupDRO,
    LfF,
    Maple,
    Method,
    Mixup,
)
from steelyard.experiments.methods.hyperparameters import page
from steelyard.experiments.runs.recipe import load_recipe
from steelyard.experiments.training.ranges import FIXED, SUBPOPBENCH, Range, Within, hyperparameters
from steelyard.experiments.tuning.trials import Search, trials
from tests.support.places import ROOT

PAGE = ROOT / "docs" / "reference" / "hyperparameters.md"


def ranges(kind: type) -> dict[str, Range]:
    return {one.path: one.range for one in hyperparameters(kind) if one.range is not None}


@pytest.mark.parametrize(
    ("range_", "low", "high"),
    [
        (Range.linear(0.2, 0.8), 0.2, 0.8),
        (Range.log10(-4, -2), 1e-4, 1e-2),
        (Range.log2(6, 6.75, whole=True), 64, 107),
        (Range.below_one(-5, -2), 0.99, 1 - 1e-5),
    ],
    ids=["linear", "log10", "log2", "below_one"],
)
def test_draws_are_in_their_range_and_spread_over_it(range_: Range, low: float, high: float) -> None:
    random = Random(0)
    drawn = [range_.draw(random) for _ in range(300)]
    assert all(low <= value <= high for value in drawn)
    exponents = {"linear": lambda x: x, "log10": math.log10, "log2": math.log2}
    exponent = {**exponents, "below_one": lambda x: math.log10(1 - x)}[range_.scale]
    middle = sum(exponent(value) for value in drawn) / len(drawn)
    assert abs(middle - (range_.low + range_.high) / 2) < 0.1 * (range_.high - range_.low)
    assert range_ == Range(**{**vars(Range.of_text(str(range_))), "source": "ours"})


@pytest.mark.parametrize("text", ["", "U(1)", "3^U(0, 1)", "U(a, b)", "U(2, 1)", "10^U(0, nan)", "10^U(0, 400)"])
def test_texts_that_are_no_range(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        Range.of_text(text)


def test_the_ranges_of_subpopbench_where_it_has_the_method() -> None:
    published = {
        (CVaRDRO, "alpha"): "10^U(-2, 0)",
        (ClassBalanced, "beta"): "1 - 10^U(-5, -2)",
        (Focal, "gamma"): "10^U(-0.30103, 0.69897)",  # 0.5 x 10^U(0, 1)
        (LDAM, "margin"): "10^U(-1, -0.1)",
        (Mixup, "alpha"): "10^U(-1, 1)",
        (LISA, "alpha"): "10^U(-1, 1)",
        (LISA, "intra_label"): "U(0, 1)",
        (MMD, "gamma"): "10^U(-1, 1)",
        (CORAL, "gamma"): "10^U(-1, 1)",
        (GroupDRO, "step"): "10^U(-3, -1)",
        (JTT, "identification.steps"): "U(0.2, 0.8) x training.steps",
        (JTT, "upweight"): "10^U(0, 2.5), whole",
        (LfF, "q"): "U(0.05, 0.95)",
        (LfF, "training.optimizer.learning_rate"): "10^U(-4, -2)",
        (LfF, "training.optimizer.weight_decay"): "10^U(-6, -3)",
    }
    for (kind, path), text in published.items():
        found = ranges(kind)[path]
        assert (str(found), found.source) == (text, SUBPOPBENCH)


def test_every_number_of_every_method_has_a_range_or_is_said_to_be_fixed() -> None:
    """Nobody may add a hyperparameter and forget to say what it is drawn from."""

    def silent(kind: type) -> list[str]:
        return [one.path for one in hyperparameters(kind) if one.range is None and not (one.fixed or one.like)]

    assert {kind.__name__: silent(kind) for kind in get_args(Method) if silent(kind)} == {}


def test_what_stands_inside_is_overruled_by_what_it_stands_in() -> None:
    @dataclass(frozen=True)
    class Inner:
        rate: Annotated[float, Range.log10(-4, -2)] = 0.1
        memory: Annotated[float, Range.linear(0, 1)] = 0.5

    @dataclass(frozen=True)
    class Outer:
        inner: Annotated[Inner, Within({"rate": Range.log10(-3, 0), "memory": FIXED})] = field(default_factory=Inner)
        held: Annotated[Inner, FIXED] = field(default_factory=Inner)

    Outer.__annotations__ = {"inner": Outer.__annotations__["inner"], "held": Outer.__annotations__["held"]}
    globals().update(Inner=Inner)
    assert {path: str(one) for path, one in ranges(Outer).items()} == {"inner.rate": "10^U(-3, 0)"}


def test_a_search_is_the_same_for_a_seed_and_its_beginning_for_any_number_of_trials() -> None:
    recipe = load_recipe("coloured_digits/jtt")
    search = Search.of(recipe)
    few, many = (trials("coloured_digits/jtt", [], search, count, 3) for count in (3, 5))
    assert few == many[:3]
    assert few[0].values == {}
    assert trials("coloured_digits/jtt", [], search, 3, 4)[1:] != few[1:]
    for one in many[1:]:
        values = one.values
        assert (
            values["method.identification.optimizer.learning_rate"] == values["method.training.optimizer.learning_rate"]
        )
        assert 0.2 * 150 - 1 <= values["method.identification.steps"] <= 0.8 * 150
        assert load_recipe("coloured_digits/jtt", one.overrides).method.upweight == values["method.upweight"]  # type: ignore[union-attr]


def test_what_is_drawn_and_what_is_not() -> None:
    recipe = load_recipe("coloured_digits/irmv1")
    assert "method.training.batch_size" not in Search.of(recipe).ranges  # 0: all samples
    held = Search.of(recipe, held=["method.penalty.weight"]).ranges
    assert "method.penalty.weight" not in held
    assert list(Search.of(recipe, vary=["method.penalty.at"]).ranges) == ["method.penalty.at"]
    own = Range.of_text("10^U(-3, -1)")
    assert Search.of(recipe, given={"method.training.l2": own}).ranges["method.training.l2"] == own
    images = load_recipe("waterbirds/jtt")
    assert "method.training.batch_size" in Search.of(images).ranges
    assert "budget" in ranges(Maple)
    weights = load_recipe("coloured_digits/maple", ["method={name='maple', learn='weights'}"])
    assert "method.budget" not in Search.of(weights).ranges


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"vary": ["method.penalty.wight"]}, "did you mean 'method.penalty.weight'"),
        ({"vary": ["method.training.l2"]}, "no range is declared for it"),
        ({"given": {"method.x": Range.linear(0, 1)}}, "no such field"),
        ({"given": {"method.name": Range.linear(0, 1)}}, "which is no number"),
    ],
    ids=["misspelt", "no range", "no field", "no number"],
)
def test_fields_that_cannot_be_drawn(more: dict, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Search.of(load_recipe("coloured_digits/irmv1"), **more)


def test_draws_that_the_recipe_refuses_are_drawn_again_and_hopeless_ones_said() -> None:
    name, small = "coloured_digits/ordered_sgd", ["method.training.batch_size=8", "method.q=4"]
    search = Search.of(load_recipe(name, small), vary=["method.q"])
    assert all(one.values["method.q"] <= 8 for one in trials(name, small, search, 6, 0)[1:])
    hopeless = Search.of(
        load_recipe(name, small), vary=["method.q"], given={"method.q": Range.linear(9, 10, whole=True)}
    )
    with pytest.raises(RecipeError, match="no draw fits the recipe; the last: .*q must be in"):
        trials(name, small, hopeless, 2, 0)


def test_the_page_is_that_of_the_classes() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()
