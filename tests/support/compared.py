"""Runs with given figures, for the tests of comparisons."""

from dataclasses import replace
from pathlib import Path

from steelyard.experiments.runs.recipe import load_recipe
from steelyard.experiments.runs.run import Run
from steelyard.experiments.training.evaluation import Evaluation, SplitMetrics, Visible


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


def grouped(run: Run, rights: list[tuple[int, int]]) -> Run:
    """The run with two test groups of ten samples, and an adjusted average that halves the plain one."""
    history = []
    for evaluation, right in zip(run.history, rights, strict=True):
        plain = evaluation.test.accuracy
        test = replace(evaluation.test, group_right=right, group_count=(10, 10), adjusted_accuracy=plain / 2)
        history.append(replace(evaluation, test=test))
    return replace(run, history=tuple(history))
