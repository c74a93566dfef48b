"""Compare runs: mean and spread over seeds, for the last step, the selected one, and the one best on test."""

from __future__ import annotations

import csv
import io
import json
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from steelyard._files import write_text
from steelyard.experiments.evaluation import Evaluation
from steelyard.experiments.run import Run
from steelyard.experiments.selection import best_on_test, criterion

__all__ = ["BEST_ON_TEST", "Row", "Spread", "compare", "group_runs", "write_comparison"]

BEST_ON_TEST = "best on test (for comparison with papers only)"


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; the deviation of a single run is 0."""

    mean: float
    std: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of `values`."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.std:.3f}"


@dataclass(frozen=True)
class Row:
    """One line of a comparison: the accuracies of a recipe's runs at the steps that one selection chose.

    The last two are None where the data set has no groups: the accuracy in each run's worst test group, and the average
    of the groups weighted by their sizes in training.
    """

    recipe: str
    dataset: str
    method: str
    selection: str
    train: Spread
    validation: Spread
    test: Spread
    steps: tuple[int, ...]  # the chosen steps, one for each seed
    seeds: tuple[int, ...]
    command: str
    test_worst_group: Spread | None = None
    test_adjusted: Spread | None = None

    @property
    def metrics(self) -> dict[str, Spread]:
        """The accuracies that are known, by name."""
        known = {
            "train accuracy": self.train,
            "validation accuracy": self.validation,
            "test accuracy": self.test,
            "test worst-group accuracy": self.test_worst_group,
            "test adjusted accuracy": self.test_adjusted,
        }
        return {name: spread for name, spread in known.items() if spread is not None}


def group_runs(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the runs grouped by recipe (all of it but the seed), groups in order of first appearance, by seed."""
    groups: dict[tuple[str, object], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.name, replace(run.recipe, seed=0)), []).append(run)
    return [sorted(group, key=lambda run: run.recipe.seed) for group in groups.values()]


def compare(runs: Sequence[Run]) -> list[Row]:
    """Return three rows for each recipe: last step, selected on validation, best on test (labelled so)."""
    rows = []
    for group in group_runs(runs):
        recipe = group[0].recipe
        visible = [[evaluation.visible for evaluation in run.history] for run in group]
        chosen = {"last": [len(run.history) - 1 for run in group]}
        if recipe.selection != "last":
            choose = criterion(recipe.selection, recipe.train_floor)
            chosen[recipe.selection] = [choose(seen) for seen in visible]
        chosen[BEST_ON_TEST] = [best_on_test(run.history, recipe.train_floor) for run in group]
        rows += [
            _row(group, selection, [run.history[k] for run, k in zip(group, places, strict=True)])
            for selection, places in chosen.items()
        ]
    return rows


def _row(group: list[Run], selection: str, chosen: list[Evaluation]) -> Row:
    first, seeds = group[0], tuple(run.recipe.seed for run in group)
    sets = "".join(f" --set {shlex.quote(override)}" for override in first.overrides)
    return Row(
        recipe=first.name,
        dataset=first.recipe.data.name,
        method=first.recipe.method.name,
        selection=selection,
        train=Spread.of([evaluation.visible.train.accuracy for evaluation in chosen]),
        validation=Spread.of([evaluation.visible.validation.accuracy for evaluation in chosen]),
        test=Spread.of([evaluation.test.accuracy for evaluation in chosen]),
        steps=tuple(evaluation.visible.step for evaluation in chosen),
        seeds=seeds,
        test_worst_group=_spread([evaluation.test.worst_group_accuracy for evaluation in chosen]),
        test_adjusted=_spread([evaluation.test.adjusted_accuracy for evaluation in chosen]),
        command=f"steelyard run {shlex.quote(first.name)} --seeds {' '.join(map(str, seeds))}{sets}",
    )


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return Spread.of(known) if known and len(known) == len(values) else None


def write_comparison(rows: Sequence[Row], folder: Path) -> None:
    """Write `comparison.md`, `comparison.csv` and `summary.json` into `folder`."""
    write_text(folder / "comparison.md", markdown(rows))
    write_text(folder / "comparison.csv", comma_separated(rows))
    write_text(folder / "summary.json", json.dumps(summary(rows), indent=2, ensure_ascii=False) + "\n")


def markdown(rows: Sequence[Row]) -> str:
    """Return a Markdown table."""
    names = _metric_names(rows)
    head = ("recipe", "step taken", *names, "seeds")
    lines = [head, ("---",) * len(head)]
    lines += [
        (row.recipe, row.selection, *(str(row.metrics.get(name, "")) for name in names), str(len(row.seeds)))
        for row in rows
    ]
    escaped = ([cell.replace("|", r"\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped) + "\n"


def comma_separated(rows: Sequence[Row]) -> str:
    """Return the comparison as CSV, a column for each number."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = _metric_names(rows)
    columns = [f"{_key(name)}_{number}" for name in names for number in ("mean", "std")]
    writer.writerow(["recipe", "dataset", "method", "selection", *columns, "steps", "seeds", "command"])
    for row in rows:
        known = [row.metrics.get(name) for name in names]
        numbers = [number for spread in known for number in (("", "") if spread is None else (spread.mean, spread.std))]
        steps, seeds = (" ".join(map(str, values)) for values in (row.steps, row.seeds))
        writer.writerow([row.recipe, row.dataset, row.method, row.selection, *numbers, steps, seeds, row.command])
    return text.getvalue()


def summary(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Return the rows of a `summary.json` under results/: one for each metric."""
    return [
        {
            "recipe": row.recipe,
            "dataset": row.dataset,
            "method": row.method,
            "metric": _key(name),
            "selection": row.selection,
            "mean": round(spread.mean, 6),
            "std": round(spread.std, 6),
            "seeds": list(row.seeds),
            "command": row.command,
        }
        for row in rows
        for name, spread in row.metrics.items()
    ]


def _metric_names(rows: Sequence[Row]) -> list[str]:
    """Return the accuracies that any of the rows has, in order."""
    return list(dict.fromkeys(name for row in rows for name in row.metrics))


def _key(name: str) -> str:
    return name.replace(" ", "_").replace("-", "_")
