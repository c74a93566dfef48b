"""Group figures against brute force, selection by the worst group, a run on a group problem."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from steelyard.experiments.data import Adult
from steelyard.experiments.errors import RecipeError
from steelyard.experiments.models import Logistic
from steelyard.experiments.report.page import render
from steelyard.experiments.runs.recipe import Recipe, load_recipe
from steelyard.experiments.runs.run import execute, read_run
from steelyard.experiments.runs.schema import parse
from steelyard.experiments.training.evaluation import (
    Evaluation,
    SplitMetrics,
    Visible,
    evaluate,
)
from steelyard.experiments.training.problem import Problem
from steelyard.experiments.training.selection import CRITERIA
from tests.support.layouts import write_adult


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Problem, torch.nn.Module, Evaluation]:
    splits = Adult().load(0, write_adult(tmp_path_factory.mktemp("adult"), rows=400))
    problem = Problem(splits, Logistic(), seed=0)
    model = problem.model()
    return problem, model, evaluate(problem, model, 1, {})


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_group_figures_by_brute_force(evaluated: tuple, part: str) -> None:
    problem, model, evaluation = evaluated
    data = getattr(problem.splits, part)
    metrics = evaluation.test if part == "test" else getattr(evaluation.visible, part)
    right = [int(a) == int(b) for a, b in zip(model(data.inputs).squeeze(1) > 0, data.targets, strict=True)]
    sizes = [problem.splits.train.group.tolist().count(g) for g in range(4)]
    members = [[r for r, g in zip(right, data.group.tolist(), strict=True) if g == group] for group in range(4)]
    accuracies = [sum(member) / len(member) for member in members]
    assert metrics.group_count == tuple(len(member) for member in members)
    assert metrics.group_accuracy == tuple(accuracies)
    assert metrics.worst_group_accuracy == min(accuracies)
    assert accuracies[metrics.worst_group] == min(accuracies)
    assert metrics.accuracy == pytest.approx(sum(right) / len(right))
    expected = sum(s * a for s, a in zip(sizes, accuracies, strict=True)) / sum(sizes)
    assert metrics.adjusted_accuracy == pytest.approx(expected)


def test_the_two_averages_differ_where_group_shares_do() -> None:
    metrics = SplitMetrics(0.5, 0.0, group_right=(9, 1), group_count=(10, 10))
    assert (metrics.worst_group, metrics.worst_group_accuracy) == (1, 0.1)


def test_figures_survive_json(evaluated: tuple) -> None:
    _, _, evaluation = evaluated
    assert SplitMetrics.from_json(json.loads(json.dumps(asdict(evaluation.test)))) == evaluation.test


def test_lines_of_older_runs_are_read() -> None:
    assert SplitMetrics.from_json({"accuracy": 0.5, "loss": 1.0}).group_accuracy == ()


def test_empty_groups_have_no_accuracy_and_are_not_the_worst() -> None:
    metrics = SplitMetrics(0.5, 0.0, group_right=(0, 1), group_count=(0, 2))
    assert metrics.group_accuracy == (None, 0.5)
    assert metrics.worst_group == 1
    assert metrics.group_intervals()[0] == (0.0, 1.0)
    assert SplitMetrics(0.5, 0.0).worst_group_accuracy is None


def seen(step: int, accuracy: float, rights: tuple[int, int]) -> Visible:
    metrics = SplitMetrics(accuracy, 0.0, group_right=rights, group_count=(10, 10))
    return Visible(step, metrics, metrics)


def test_worst_group_selection() -> None:
    history = [seen(1, 0.9, (10, 3)), seen(2, 0.8, (8, 7)), seen(3, 0.8, (7, 7)), seen(4, 0.5, (5, 5))]
    chosen = {name: CRITERIA[name](history) for name in ("validation_worst_group", "validation_mean", "last")}
    assert chosen == {"validation_worst_group": 1, "validation_mean": 0, "last": 3}


def test_worst_group_selection_without_groups_says_what_to_take() -> None:
    metrics = SplitMetrics(0.5, 0.0)
    with pytest.raises(ValueError, match="take 'validation_worst_environment'"):
        CRITERIA["validation_worst_group"]([Visible(1, metrics, metrics)])


def test_a_run_that_cannot_be_selected_from_does_not_start(tmp_path: Path) -> None:
    recipe = load_recipe("coloured_digits/erm", ["selection=validation_worst_group"])
    with pytest.raises(RecipeError, match="needs group labels"):
        execute(recipe, tmp_path / "run", name="test")
    assert not (tmp_path / "run").exists()


ERM = {"name": "erm", "training": {"steps": 4, "evaluate_every": 2}}
MAPLE = {"name": "maple", "budget": 40, "steps": 2, "inner": {"steps": 2}}


@pytest.mark.parametrize("method", [ERM, MAPLE])
def test_a_run_on_a_group_problem_from_end_to_end(tmp_path: Path, method: dict) -> None:
    table = {
        "data": {"name": "adult"},
        "model": {"name": "logistic"},
        "method": method,
        "selection": "validation_worst_group",
    }
    run = execute(parse(Recipe, table, "test"), tmp_path / "run", name="test", data_root=write_adult(tmp_path))
    again = read_run(tmp_path / "run")
    assert again.history == run.history
    page = render([again], tmp_path)  # a table of features has no gallery; the page is made all the same
    assert "Women who earn more" in page
    if run.samples is not None:
        assert set(run.samples["group"]) == {0, 1, 2, 3}
    assert all(evaluation.test.worst_group_accuracy is not None for evaluation in run.history)
