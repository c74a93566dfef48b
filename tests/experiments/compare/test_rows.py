"""Comparisons: means and spreads, three selections, what marks a row."""

import math
import statistics
from dataclasses import replace

import pytest

from steelyard.experiments.compare.rows import BEST_ON_TEST, Spread, compare, footnotes
from steelyard.experiments.runs.recipe import load_recipe
from tests.support.compared import RUNS, grouped, made


def test_the_three_selections() -> None:
    last, selected, best = compare(RUNS)
    assert [last.selection, selected.selection, best.selection] == ["last", "validation_mean", BEST_ON_TEST]
    assert last.seeds == (0, 1)
    assert (last.steps, selected.steps, best.steps) == ((30, 40), (10, 20), (20, 20))
    assert last.test.mean == pytest.approx(0.4)
    assert selected.test.mean == pytest.approx(0.25)  # (0.1 + 0.4) / 2
    assert best.test.mean == pytest.approx(0.5)  # 0.6 and 0.4: 0.9 is below the floor of training accuracy
    assert last.test.std == pytest.approx(statistics.stdev([0.5, 0.3]))
    assert "papers only" in best.selection


def test_the_command_names_a_data_root_where_one_is_needed() -> None:
    run = made(0, [(0.9, 0.7, 0.1)], "colored_mnist/erm")
    assert compare([run])[0].command.endswith("--set a=1 --data-root DATA")
    assert "--data-root" not in compare(RUNS)[0].command


def test_without_a_selection_there_are_two_rows() -> None:
    runs = [replace(run, recipe=replace(run.recipe, selection="last")) for run in RUNS]
    assert [row.selection for row in compare(runs)] == ["last", BEST_ON_TEST]


def test_last_steps_below_the_floor_and_divergence_are_marked() -> None:
    sunk = made(2, [(0.9, 0.6, 0.2), (0.4, 0.5, 0.5)])  # the floor is 0.5
    rows = compare([*RUNS, sunk])
    assert [(row.below_floor, row.diverged) for row in rows] == [(1, 0), (0, 0), (0, 0)]
    (note,) = footnotes(rows)
    assert note.startswith("† coloured_digits/erm: 1 of 3 seeds ended with a training accuracy below")
    assert "floor of 0.5" in note
    assert footnotes(compare(RUNS)) == []
    last = sunk.history[-1]
    nan = replace(last, visible=replace(last.visible, train=replace(last.visible.train, accuracy=0.6, loss=math.nan)))
    (note,) = footnotes(compare([replace(sunk, history=(nan,))]))
    assert note.startswith("‡ coloured_digits/erm: 1 of 1 seed diverged")


def test_one_seed_has_no_spread() -> None:
    assert Spread.of([0.5]) == Spread(0.5, 0.0)
    assert (str(Spread.of([0.5])), Spread.of([0.5]).percent()) == ("0.500", "50.0")
    assert "±" in str(Spread.of([0.5, 0.5]))


def test_a_spread_keeps_the_value_of_each_seed() -> None:
    last, *_ = compare(RUNS)
    assert last.test.values == (0.5, 0.3)  # in the order of the seeds
    assert last.test == Spread(last.test.mean, last.test.std, 2)  # which is not what makes spreads equal


def test_groups_give_the_worst_one_and_both_averages() -> None:
    run = grouped(RUNS[1], [(9, 1), (2, 8), (5, 7)])
    last, selected, _ = compare([run])
    assert last.test_worst_group == Spread(0.5, 0.0)
    assert selected.test_worst_group == Spread(0.1, 0.0)
    assert last.test_adjusted == Spread(0.25, 0.0)
    assert list(last.metrics)[-2:] == ["test worst-group accuracy", "test adjusted accuracy"]
    assert compare([RUNS[1]])[0].test_worst_group is None


def test_a_row_says_how_its_data_set_was_changed() -> None:
    recipe = load_recipe("coloured_digits/erm", ["data.test_flip=0.8", "data.grayscale=true"])
    (last, *_) = compare([replace(RUNS[1], recipe=recipe)])
    assert (last.data_changes, last.oracle) == (("test_flip", "grayscale"), True)
    assert (compare(RUNS)[0].data_changes, compare(RUNS)[0].oracle) == ((), False)
