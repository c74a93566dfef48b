"""One row: its search on one data seed, chosen on validation, and the chosen settings on others, in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steelyard.bilevel.batch import Batch
from steelyard.experiments.data import Splits
from steelyard.experiments.errors import RecipeError
from steelyard.experiments.runs.recipe import Recipe, load_recipe
from steelyard.experiments.training.evaluation import Evaluation, SplitMetrics, Visible, evaluate
from steelyard.experiments.training.problem import Problem
from steelyard.experiments.training.selection import CRITERIA, Scored
from steelyard.experiments.training.trainer import Training
from steelyard.experiments.tuning.choice import best, reached, scored
from steelyard.experiments.tuning.tuning import Tuned, Tuning
from studies.photographs.rows import Row, Samples
from studies.photographs.shuffled import shuffled_weights

__all__ = ["CHOSEN_BY", "Search", "Sets", "carry_out", "trained_on"]

Sets = Callable[[int], Splits]
"""data seed -> the splits."""


_STAGES = ("training", "representation")


@dataclass(frozen=True)
class Search:
    """How rows are tuned and measured.

    Attributes:
        trials: settings of each row, the recipe as it stands among them; with 1 nothing is searched.
        tuned_on: the data seed of the search.
        seeds: the data seeds of the figures.
        steps: of each training by the one trainer; MAPLE's and the online method's are their recipes'.
        overrides: set in every recipe.
    """

    trials: int = 16
    tuned_on: int = 100
    seeds: tuple[int, ...] = (101, 102, 103)
    steps: int = 600
    overrides: tuple[str, ...] = ()

    def settings(self, row: Row) -> list[str]:
        """Return what is set in every trial of a row; a later one overrides an earlier."""
        stages = [name for name in _STAGES if isinstance(getattr(row.load().method, name, None), Training)]
        return [*self.overrides, *(f"method.{name}.steps={self.steps}" for name in stages), *row.overrides]


@dataclass(frozen=True)
class _Course:
    """What a run showed: its evaluations, the processor time, and the samples' weights shuffled within groups."""

    history: tuple[Evaluation, ...]
    seconds: float
    shuffled: Evaluation | None = None


def carry_out(row: Row, sets: Sets, search: Search, folder: Path) -> dict[str, Any]:
    """Tune a row, write the trials and the chosen recipe to `folder`, and return its figures as plain numbers.

    Settings and step are chosen by the worst group's accuracy on validation; of a row that reads no groups a second
    time by the worst class's, which asks for none. Where a row is trained on validation samples as a whole
    ("validation", "both"), the search fits on one half of them and is judged by the other, and the runs that are
    reported train for as many steps as it chose.

    Raises:
        RecipeError: no trial can be chosen, or no run of the only one has figures.
    """
    if search.trials == 1:
        return _as_it_stands(row, sets, search)
    tuning = Tuning.of(
        row.recipe, search.settings(row), folder, count=search.trials, seeds=(search.tuned_on,), ranges=row.ranges
    )
    began = time.process_time()
    histories = _trials(tuning, trained_on(sets(search.tuned_on), row.samples, halve=True))
    spent = time.process_time() - began
    courses: dict[tuple[int, int], _Course] = {}
    choices = {}
    for name in CHOSEN_BY[: 1 + (row.known == "nowhere")]:
        choose = scored(CRITERIA[name], name)
        found = [None if isinstance(one, str) else reached([one], choose) for one in histories]
        chosen = best(found)
        if chosen is None:
            raise RecipeError(
                f"{row.title}: no trial can be chosen: {next(filter(_is_text, histories), 'all diverged')}"
            )
        taken = found[chosen]
        assert taken is not None  # `best` passes over those that failed
        if name == CHOSEN_BY[0]:
            Tuned(tuning, tuple(found), tuple(one if isinstance(one, str) else "" for one in histories), chosen).write()
        settings = list(tuning.settings(tuning.trials[chosen]))
        if row.samples != "given":
            settings.append(f"method.training.steps={taken.chosen[0].step}")
        choices[name] = {
            "trial": chosen,
            "score": taken.score,
            "settings": dict(tuning.trials[chosen].values),
            "runs": [
                _measured(row, load_recipe(tuning.name, settings, seed), sets(seed), choose, courses, chosen)
                for seed in search.seeds
            ],
        }
    failed = sum(isinstance(one, str) for one in histories)
    return {
        "row": row.title,
        "known": row.known,
        "trials": len(tuning.trials),
        "failed": failed,
        "search seconds": spent,
        "choices": choices,
    }


def _as_it_stands(row: Row, sets: Sets, search: Search) -> dict[str, Any]:
    """Return the figures of a row whose settings nobody chose; its score is that of the runs' own validation."""
    courses: dict[tuple[int, int], _Course] = {}
    choices = {}
    for name in CHOSEN_BY[: 1 + (row.known == "nowhere")]:
        choose = scored(CRITERIA[name], name)
        runs = [
            _measured(row, load_recipe(row.recipe, search.settings(row), seed), sets(seed), choose, courses, 0)
            for seed in search.seeds
        ]
        if not courses:
            raise RecipeError(f"{row.title}: no trial can be chosen: {runs[0]['failed']}")
        seen = [[one.visible for one in course.history] for course in courses.values()]
        score = reached(seen if row.samples == "given" else [one[-1:] for one in seen], choose).score
        choices[name] = {"trial": 0, "score": score, "settings": {}, "runs": runs}
    return {"row": row.title, "known": row.known, "trials": 1, "failed": 0, "search seconds": 0.0, "choices": choices}


CHOSEN_BY = ("validation_worst_group", "validation_worst_class")
"""By what settings and steps are chosen; the second where groups are known nowhere."""


def _is_text(one: object) -> bool:
    return isinstance(one, str)


def _trials(tuning: Tuning, splits: Splits) -> list[list[Visible] | str]:
    """Return what decisions may see of each trial's run, or why it failed."""
    found: list[list[Visible] | str] = []
    for trial in tuning.trials:
        recipe = load_recipe(tuning.name, tuning.settings(trial), tuning.seeds[0])
        try:
            found.append([one.visible for one in _run(recipe, splits).history])
        except FAILURES as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


FAILURES = (ValueError, RuntimeError, ArithmeticError)
"""Of a run: it diverged, or there are no groups to be found."""


def _measured(
    row: Row,
    recipe: Recipe,
    splits: Splits,
    choose: Scored,
    courses: dict[tuple[int, int], _Course],
    trial: int,
) -> dict[str, Any]:
    """Return the figures of a run at the step that stands for it; one that another choice asked for is taken over."""
    known = (trial, recipe.seed)
    try:
        if known not in courses:
            courses[known] = _run(recipe, trained_on(splits, row.samples), shuffle=True)
    except FAILURES as error:
        return {"seed": recipe.seed, "failed": f"{type(error).__name__}: {error}"}
    course = courses[known]
    chosen = len(course.history) - 1
    if row.samples == "given":
        chosen = choose([one.visible for one in course.history])
    found = {"seed": recipe.seed, "seconds": course.seconds, **_figures(course.history[chosen])}
    return found if course.shuffled is None else {**found, "shuffled": _figures(course.shuffled)}


def _figures(one: Evaluation) -> dict[str, Any]:
    visible, test = one.visible, one.test
    return {
        "step": visible.step,
        "validation": _split(visible.validation),
        "test": _split(test),
        "extra": {name: value for name, value in one.extra.items() if isinstance(value, (int, float))},
    }


def _split(metrics: SplitMetrics) -> dict[str, Any]:
    return {
        "accuracy": metrics.accuracy,
        "adjusted": metrics.adjusted_accuracy,
        "right": list(metrics.group_right),
        "count": list(metrics.group_count),
        "calibration error": metrics.calibration_error,
    }


def _run(recipe: Recipe, splits: Splits, shuffle: bool = False) -> _Course:
    problem, history = Problem(splits, recipe.model, recipe.seed), list[Evaluation]()

    def observe(step: int, model: nn.Module, extra: Mapping[str, float]) -> None:
        history.append(evaluate(problem, model, step, extra))

    began = time.process_time()
    fitted = recipe.method.fit(problem, observe)
    seconds = time.process_time() - began
    model = shuffled_weights(recipe, problem, fitted) if shuffle else None
    return _Course(tuple(history), seconds, None if model is None else evaluate(problem, model, 0, {}))


def trained_on(splits: Splits, samples: Samples, halve: bool = False) -> Splits:
    """Return the splits with what a row is trained on as training split.

    Args:
        splits: as given.
        samples: see `Row`.
        halve: take one half of the validation split for training, and leave the other as validation.
    """
    if samples == "given":
        return splits
    validation = splits.validation
    learned, judged = validation, validation
    if halve:
        order = torch.randperm(len(validation), generator=torch.Generator().manual_seed(0))
        learned, judged = (validation.take(part.sort().values) for part in order.chunk(2))
    parts = [learned] if samples == "validation" else [splits.train, learned]
    return replace(splits, train=_joined(parts), validation=judged, facts={}, ids=(), rows={})


def _joined(parts: Sequence[Batch]) -> Batch:
    """Return the samples of several batches as one, numbered again."""
    environments, groups = ([getattr(one, name) for one in parts] for name in ("environment", "group"))
    joined = Batch.of(torch.cat([one.inputs for one in parts]), torch.cat([one.targets for one in parts]))
    return replace(joined, environment=torch.cat(environments), group=torch.cat(groups))
