"""The figures of one run of the benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas
import torch
from safetensors.torch import load_file

from steelyard.experiments.runs.folder import MODEL
from steelyard.experiments.runs.run import Run
from steelyard.experiments.training.group_labels import with_groups
from steelyard.experiments.training.problem import Problem
from steelyard.experiments.training.selection import criterion

__all__ = ["figures", "steps_to"]


def figures(run: Run, data_root: Path | None = None) -> dict[str, Any]:
    """Return accuracies, and what was kept, as shares of the kept set (of the sum of probability x weight).

    Keys: test_last, test_selected (at the step that the recipe's criterion chooses on validation), train_last,
    validation_last; test_balanced, the last model's mean accuracy over the test samples whose colour agrees with the
    label and over those whose colour does not (a tenth and nine tenths of them: by test_last a model that learned the
    colour backwards does well, by test_balanced it is at 0.5); corrupted, wrong and aligned (labels that were
    corrupted, that are not the digit's, that the colour agrees with) as shares of what was kept, None where all samples
    are, or there was no corruption; of methods with outer steps steps_95, the first step with 95 % of the last step's
    test accuracy, and curve, the test accuracy after each of them.
    """
    last = run.history[-1]
    chosen = run.history[
        criterion(run.recipe.selection, run.recipe.train_floor)([evaluation.visible for evaluation in run.history])
    ]
    tests = [evaluation.test.accuracy for evaluation in run.history]
    row: dict[str, Any] = {
        "test_last": last.test.accuracy,
        "test_selected": chosen.test.accuracy,
        "train_last": last.visible.train.accuracy,
        "test_balanced": _balanced(run, data_root),
        "validation_last": last.visible.validation.accuracy,
        "corrupted": _share(run.samples, "label_corrupted"),
        "wrong": _share(run.samples, "label_flipped"),
        "aligned": _share(run.samples, "colour_agrees"),
        "steps_95": None,
        "curve": (),
    }
    if run.recipe.method.name == "maple":
        row |= {"steps_95": steps_to(tests, 0.95 * tests[-1]), "curve": tuple(tests)}
    return row


def steps_to(accuracies: Sequence[float], level: float) -> int | None:
    """Return the first outer step (from 1) with an accuracy at or above `level`; None if there is none.

    Example:
        >>> steps_to([0.1, 0.5, 0.4, 0.6], 0.5), steps_to([0.1], 0.5)
        (2, None)
    """
    return next((step for step, accuracy in enumerate(accuracies, start=1) if accuracy >= level), None)


def _share(samples: pandas.DataFrame | None, fact: str) -> float | None:
    """Return the share of what was kept for which `fact` is true."""
    if samples is None or fact not in samples:
        return None
    kept = samples["probability"] * samples["weight"]
    return float(kept[samples[fact]].sum() / kept.sum())


@torch.no_grad()
def _balanced(run: Run, root: Path | None) -> float:
    recipe = run.recipe
    problem = Problem(recipe.data.load(recipe.seed, root), recipe.model, recipe.seed)
    model = problem.model().eval()
    model.load_state_dict(load_file(run.directory / MODEL))
    test = with_groups(problem.splits.test)  # 2 label + colour
    assert test.group is not None
    right, agrees = problem.head.predict(model(test.inputs)) == test.targets, test.group // 2 == test.group % 2
    return float((right[agrees].double().mean() + right[~agrees].double().mean()) / 2)
