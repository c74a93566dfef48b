"""Comparisons: means and spreads, three selections, the files."""

import csv
import io
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from steelyard.experiments.compare import (
    BEST_ON_TEST,
    Spread,
    comma_separated,
    compare,
    footnotes,
    group_runs,
    markdown,
    short,
    summary,
    write_comparison,
)
from steelyard.experiments.errors import RunError
from steelyard.experiments.evaluation import Evaluation, SplitMetrics, Visible
from steelyard.experiments.recipe import load_recipe
from steelyard.experiments.run import Run


def made(seed: int, figures: list[tuple[float, float, float]], name: str = "coloured_digits/erm") -> Run:
    """A run with (train, validation, test) accuracies at steps 10, 20, ..."""
    history = []
    for k, (train, validation, test) in enumerate(figures):
        seen = SplitMetrics(validation, 0.0, (validation, validation))
        history.append(Evaluation(Visible(10 * (k + 1), SplitMetrics(train, 0.0), seen), SplitMetrics(test, 0.0), {}))
    recipe = replace(load_recipe(name, seed=seed), selection="validation_mean", train_floor=0.5)
    return Run(Path(f"run{seed}"), name, ("a=1",), recipe, tuple(history), {"seconds": 1.0}, None)


RUNS = [
    made(1, [(0.9, 0.6, 0.2), (0.8, 0.9, 0.4), (0.4, 0.5, 0.9), (0.7, 0.5, 0.3)]),
    made(0, [(0.9, 0.7, 0.1), (0.8, 0.6, 0.6), (0.7, 0.5, 0.5)]),
]


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


def test_last_steps_below_the_floor_and_divergence_are_marked() -> None:
    sunk = made(2, [(0.9, 0.6, 0.2), (0.4, 0.5, 0.5)])  # the floor is 0.5
    rows = compare([*RUNS, sunk])
    assert [(row.below_floor, row.diverged) for row in rows] == [(1, 0), (0, 0), (0, 0)]
    (note,) = footnotes(rows)
    assert note.startswith("† coloured_digits/erm: 1 of 3 seeds ended with a training accuracy below")
    assert "floor of 0.5" in note
    assert "| coloured_digits/erm † | last |" in markdown(rows)
    assert note in markdown(rows)
    assert footnotes(compare(RUNS)) == []
    last = sunk.history[-1]
    nan = replace(last, visible=replace(last.visible, train=replace(last.visible.train, accuracy=0.6, loss=math.nan)))
    (note,) = footnotes(compare([replace(sunk, history=(nan,))]))
    assert note.startswith("‡ coloured_digits/erm: 1 of 1 seed diverged")


def test_short_labels_stay_apart() -> None:
    assert short(["d/erm", "d/erm a.b=c/d", "mine.toml"], "d") == ["erm", "erm a.b=c/d", "mine.toml"]
    assert short(["d/erm", "erm"], "d") == ["d/erm", "erm"]


def test_the_same_run_twice_is_refused() -> None:
    with pytest.raises(RunError, match=r"run0 and run0 are the same run of coloured_digits/erm, seed 0"):
        compare([RUNS[1], RUNS[1]])


def test_one_seed_has_no_spread() -> None:
    assert Spread.of([0.5]) == Spread(0.5, 0.0)
    assert (str(Spread.of([0.5])), Spread.of([0.5]).percent()) == ("0.500", "50.0")
    assert "±" in str(Spread.of([0.5, 0.5]))


def test_the_files(tmp_path: Path) -> None:
    rows = compare(RUNS)
    write_comparison(rows, tmp_path)
    assert (tmp_path / "comparison.md").read_text() == markdown(rows)
    assert markdown(rows).count("\n") == 5
    table = list(csv.DictReader(io.StringIO(comma_separated(rows))))
    assert float(table[0]["test_accuracy_mean"]) == pytest.approx(0.4)
    assert table[1]["steps"] == "10 20"
    written = json.loads((tmp_path / "summary.json").read_text())
    keys = ["recipe", "dataset", "method", "metric", "selection", "mean", "std", "seeds", "command"]
    assert all(list(row) == keys for row in written)
    assert len(written) == 9
    row = next(row for row in written if row["metric"] == "test_accuracy" and row["selection"] == "last")
    assert (row["mean"], row["seeds"]) == (0.4, [0, 1])
    assert row["command"] == "steelyard run coloured_digits/erm --seeds 0 1 --set a=1"


def test_markdown_keeps_its_columns_whatever_a_recipe_is_called() -> None:
    run = replace(RUNS[0], name="a|b")
    lines = markdown(compare([run])).splitlines()
    assert {line.replace(r"\|", "").count("|") for line in lines} == {7}


def grouped(run: Run, rights: list[tuple[int, int]]) -> Run:
    """The run with two test groups of ten samples, and an adjusted average that halves the plain one."""
    history = []
    for evaluation, right in zip(run.history, rights, strict=True):
        plain = evaluation.test.accuracy
        test = replace(evaluation.test, group_right=right, group_count=(10, 10), adjusted_accuracy=plain / 2)
        history.append(replace(evaluation, test=test))
    return replace(run, history=tuple(history))


def test_groups_give_the_worst_one_and_both_averages() -> None:
    run = grouped(RUNS[1], [(9, 1), (2, 8), (5, 7)])
    last, selected, _ = compare([run])
    assert last.test_worst_group == Spread(0.5, 0.0)
    assert selected.test_worst_group == Spread(0.1, 0.0)
    assert last.test_adjusted == Spread(0.25, 0.0)
    rows = [*compare([run]), *compare([replace(RUNS[1], name="plain")])]
    head, _, first, *_, other = markdown(rows).splitlines()
    assert "| test accuracy | test worst-group accuracy | test adjusted accuracy | seeds |" in head
    assert "| 0.500 | 0.500 | 0.250 | 1 |" in first
    assert other.endswith("|  |  | 1 |")  # the data set of this row has no groups
    table = list(csv.DictReader(io.StringIO(comma_separated(rows))))
    assert float(table[0]["test_worst_group_accuracy_mean"]) == 0.5
    assert table[-1]["test_worst_group_accuracy_mean"] == ""
    assert [row["metric"] for row in summary(rows)[:5]][3:] == ["test_worst_group_accuracy", "test_adjusted_accuracy"]


def test_without_groups_there_is_no_column_for_them() -> None:
    assert "worst" not in markdown(compare(RUNS)) + comma_separated(compare(RUNS))
