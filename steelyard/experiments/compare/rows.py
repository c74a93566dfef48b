"""Compare runs: mean and spread over seeds, for the last step, the selected one, and the one best on test."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from steelyard.experiments.compare.run_groups import group_runs, labels
from steelyard.experiments.compare.scores import Interval, figures, intervals
from steelyard.experiments.data import DataSet, called
from steelyard.experiments.runs.run import Run
from steelyard.experiments.training.evaluation import Evaluation
from steelyard.experiments.training.selection import best_on_test, criterion

__all__ = ["BEST_ON_TEST", "BRIEF", "GROUP_METRICS", "Row", "Spread", "chosen_row", "compare", "footnotes"]

BEST_ON_TEST = "best on test (for comparison with papers only)"
GROUP_METRICS = ("test adjusted accuracy", "test worst-group accuracy")
BRIEF = {  # for tables that have one line a method
    "train accuracy": "train",
    "validation accuracy": "validation",
    "test accuracy": "test",
    "test adjusted accuracy": "adjusted",
    "test worst-group accuracy": "worst group",
    "train MSE": "train",
    "validation MSE": "validation",
    "test MSE": "test",
    "test MAE": "test MAE",
    "test R2": "test R2",
    "test worst-group MSE": "worst group",
}
BELOW, DIVERGED = "†", "‡"


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds, and their values; the deviation of a single run is 0."""

    mean: float
    std: float
    count: int = 1
    values: tuple[float, ...] = field(default=(), compare=False)

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of `values`; of one that is NaN or infinite the deviation is NaN."""
        if not all(map(math.isfinite, values)):
            return cls(statistics.fmean(values), math.nan, len(values), tuple(values))
        std = statistics.stdev(values) if len(values) > 1 else 0.0
        return cls(statistics.fmean(values), std, len(values), tuple(values))

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.std:.3f}" if self.count > 1 else f"{self.mean:.3f}"

    def plain(self) -> str:
        """Return it to four digits, for figures that are no shares."""
        return f"{self.mean:.4g} ± {self.std:.2g}" if self.count > 1 else f"{self.mean:.4g}"

    def percent(self) -> str:
        """Return it in per cent; a single run has no deviation to show."""
        return f"{100 * self.mean:.1f} ± {100 * self.std:.1f}" if self.count > 1 else f"{100 * self.mean:.1f}"


@dataclass(frozen=True)
class Row:
    """One line of a comparison: the accuracies of a recipe's runs at the steps that one selection chose.

    `label` names the group of runs, and no other group of the comparison: variants of one recipe share its name.
    `below_floor` counts the seeds whose training accuracy at the chosen step is below the recipe's `train_floor`,
    `diverged` those whose loss there is NaN or infinite.
    `test_worst_group` (the accuracy in each run's worst test group) and `test_adjusted` (the average of the groups
    weighted by their sizes in training) are None where the data set has no groups.
    `errors` has the figures of a regression by name, which has no accuracies (they are then NaN).
    `scores` has the figures of ranking and balance by name (`compare.scores`), empty for runs of earlier versions;
    `intervals` 95 % intervals over the test samples of those figures and of the worst group's accuracy.
    `oracle` says that the data hides the shortcut, `data_changes` names the data set's settings that are not its own.
    """

    recipe: str
    label: str
    dataset: str
    method: str
    selection: str
    train: Spread
    validation: Spread
    test: Spread
    steps: tuple[int, ...]  # the chosen steps, one for each seed
    seeds: tuple[int, ...]
    command: str
    train_floor: float
    below_floor: int
    diverged: int
    test_worst_group: Spread | None = None
    test_adjusted: Spread | None = None
    oracle: bool = False
    data_changes: tuple[str, ...] = ()
    errors: Mapping[str, Spread] = field(default_factory=dict)
    scores: Mapping[str, Spread] = field(default_factory=dict)
    intervals: Mapping[str, Interval] = field(default_factory=dict)

    @property
    def marks(self) -> str:
        """The signs that go with the row's name; `footnotes` says what they mean."""
        return BELOW * bool(self.below_floor) + DIVERGED * bool(self.diverged)

    @property
    def metrics(self) -> dict[str, Spread]:
        """The accuracies that are known, by name; of a regression the errors."""
        if self.errors:
            return dict(self.errors)
        known = {
            "train accuracy": self.train,
            "validation accuracy": self.validation,
            "test accuracy": self.test,
            "test worst-group accuracy": self.test_worst_group,
            "test adjusted accuracy": self.test_adjusted,
        }
        return {name: spread for name, spread in known.items() if spread is not None}


def compare(runs: Sequence[Run]) -> list[Row]:
    """Return three rows for each group: last step, selected on validation, best on test (labelled so)."""
    rows = []
    groups = group_runs(runs)
    for label, group in zip(labels(groups), groups, strict=True):
        recipe = group[0].recipe
        visible = [[evaluation.visible for evaluation in run.history] for run in group]
        chosen = {"last": [len(run.history) - 1 for run in group]}
        if recipe.selection != "last":
            choose = criterion(recipe.selection, recipe.train_floor)
            chosen[recipe.selection] = [choose(seen) for seen in visible]
        chosen[BEST_ON_TEST] = [best_on_test(run.history, recipe.train_floor) for run in group]
        rows += [
            chosen_row(group, label, selection, [run.history[k] for run, k in zip(group, places, strict=True)])
            for selection, places in chosen.items()
        ]
    return rows


def chosen_row(group: list[Run], label: str, selection: str, chosen: list[Evaluation]) -> Row:
    """Return the row of a group of runs, seeds of one recipe, at the evaluations chosen by `selection`."""
    first, seeds = group[0], tuple(run.recipe.seed for run in group)
    sets = "".join(f" --set {shlex.quote(override)}" for override in first.overrides)
    tests = [] if chosen[0].test.errors else [evaluation.test for evaluation in chosen]
    root = " --data-root DATA" if first.recipe.data.needs_root else ""
    return Row(
        recipe=first.name,
        label=label,
        dataset=called(first.recipe.data),
        method=first.recipe.method.name,
        selection=selection,
        train=Spread.of([evaluation.visible.train.accuracy for evaluation in chosen]),
        validation=Spread.of([evaluation.visible.validation.accuracy for evaluation in chosen]),
        test=Spread.of([evaluation.test.accuracy for evaluation in chosen]),
        steps=tuple(evaluation.visible.step for evaluation in chosen),
        seeds=seeds,
        command=f"steelyard run {shlex.quote(first.name)} --seeds {' '.join(map(str, seeds))}{sets}{root}",
        train_floor=first.recipe.train_floor,
        below_floor=sum(evaluation.visible.train.accuracy < first.recipe.train_floor for evaluation in chosen),
        diverged=sum(not evaluation.visible.finite for evaluation in chosen),
        test_worst_group=_spread([evaluation.test.worst_group_accuracy for evaluation in chosen]),
        test_adjusted=_spread([evaluation.test.adjusted_accuracy for evaluation in chosen]),
        oracle=first.recipe.data.grayscale,
        data_changes=_changes(first.recipe.data),
        errors=_errors(chosen),
        scores={name: Spread.of(values) for name, values in figures(tests).items()},
        intervals=intervals(tests),
    )


def _errors(chosen: Sequence[Evaluation]) -> dict[str, Spread]:
    """Return the figures of a regression by name; none of a classification."""
    parts = [(one.visible.train.errors, one.visible.validation.errors, one.test.errors) for one in chosen]
    known = [(train, held, test) for train, held, test in parts if train and held and test]
    if not known:
        return {}
    figures: dict[str, list[float | None]] = {
        "train MSE": [train.mse for train, _, _ in known],
        "validation MSE": [held.mse for _, held, _ in known],
        "test MSE": [test.mse for _, _, test in known],
        "test MAE": [test.mae for _, _, test in known],
        "test R2": [test.r2 for _, _, test in known],
        "test worst-group MSE": [test.worst_group_mse for _, _, test in known],
    }
    return {name: spread for name, values in figures.items() if (spread := _spread(values)) is not None}


def _changes(data: DataSet) -> tuple[str, ...]:
    """Return the fields of a data set that differ from their defaults; those that have none are no change."""
    return tuple(one.name for one in fields(data) if getattr(data, one.name) != _default(one, data))


def _default(one: Field[Any], data: DataSet) -> Any:
    if one.default_factory is not MISSING:
        return one.default_factory()
    return getattr(data, one.name) if one.default is MISSING else one.default


def footnotes(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for each mark at a row of last steps: how many of its seeds must not be averaged unseen."""
    notes = []
    for row in rows:
        if row.selection == "last":
            seeds = f"of {len(row.seeds)} seed{'s' * (len(row.seeds) > 1)}"
            if row.below_floor:
                them = "them" if row.below_floor > 1 else "it"
                notes.append(
                    f"{BELOW} {row.label}: {row.below_floor} {seeds} ended with a training accuracy below the recipe's "
                    f"floor of {row.train_floor:g}; the figures of the last step include {them}."
                )
            if row.diverged:
                notes.append(
                    f"{DIVERGED} {row.label}: {row.diverged} {seeds} diverged (the loss is NaN or infinite); "
                    "the figures of the last step mean nothing."
                )
    return notes


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return Spread.of(known) if known and len(known) == len(values) else None
