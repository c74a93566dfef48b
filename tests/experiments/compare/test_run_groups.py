"""Runs in groups: by recipe, by seed, each group with a label of its own."""

from dataclasses import replace

import pytest

from steelyard.experiments.compare.rows import compare
from steelyard.experiments.compare.run_groups import group_runs, short
from steelyard.experiments.compare.tables import summary
from steelyard.experiments.errors import RunError
from steelyard.experiments.runs.recipe import load_recipe
from tests.support.compared import RUNS, made


def test_runs_of_different_recipes_are_not_averaged() -> None:
    longer = replace(RUNS[0], recipe=load_recipe("coloured_digits/erm", ["method.training.steps=7"], 1))
    groups = group_runs([*RUNS, longer])
    assert [len(group) for group in groups] == [2, 1]
    assert [run.recipe.seed for run in groups[0]] == [0, 1]


def test_variants_of_one_recipe_have_labels_of_their_own() -> None:
    edited = replace(
        RUNS[0], recipe=load_recipe("coloured_digits/erm", ["method.training.steps=8", "selection=last"], 1)
    )
    variant = replace(
        made(0, [(0.9, 0.6, 0.7)]),
        recipe=load_recipe("coloured_digits/erm", ["method.training.steps=7", "selection=last"]),
        overrides=("a=1", "method.training.steps=7"),
    )
    rows = compare([*RUNS, variant, edited])
    assert [row.label for row in rows if row.selection == "last"] == [
        "coloured_digits/erm",
        "coloured_digits/erm training.steps=7",
        "coloured_digits/erm (2)",
    ]
    assert {row.recipe for row in rows} == {"coloured_digits/erm"}
    by = {(row.label, row.selection): row for row in rows}
    assert by["coloured_digits/erm training.steps=7", "last"].test.mean == pytest.approx(0.7)
    assert by["coloured_digits/erm", "last"].seeds == (0, 1)
    summaries = summary(compare([*RUNS, variant]))
    assert len({(row["command"], row["metric"], row["selection"]) for row in summaries}) == len(summaries)


def test_short_labels_stay_apart() -> None:
    assert short(["d/erm", "d/erm a.b=c/d", "mine.toml"], "d") == ["erm", "erm a.b=c/d", "mine.toml"]
    assert short(["d/erm", "erm"], "d") == ["d/erm", "erm"]


def test_the_same_run_twice_is_refused() -> None:
    with pytest.raises(RunError, match=r"run0 and run0 are the same run of coloured_digits/erm, seed 0"):
        compare([RUNS[1], RUNS[1]])
