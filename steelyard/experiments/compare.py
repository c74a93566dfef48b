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
from steelyard.experiments.errors import RunError
from steelyard.experiments.evaluation import Evaluation
from steelyard.experiments.run import Run
from steelyard.experiments.selection import best_on_test, criterion

__all__ = ["BEST_ON_TEST", "Row", "Spread", "compare", "footnotes", "group_runs", "labels", "short", "write_comparison"]

BEST_ON_TEST = "best on test (for comparison with papers only)"
BELOW, DIVERGED = "†", "‡"


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; the deviation of a single run is 0."""

    mean: float
    std: float
    count: int = 1

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of `values`."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.std:.3f}" if self.count > 1 else f"{self.mean:.3f}"

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

    @property
    def marks(self) -> str:
        """The signs that go with the row's name; `footnotes` says what they mean."""
        return BELOW * bool(self.below_floor) + DIVERGED * bool(self.diverged)

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
    """Return the runs grouped by recipe (all of it but the seed), groups in order of first appearance, by seed.

    Raises:
        RunError: two of them have the same settings and the same seed.
    """
    groups: dict[tuple[str, object], list[Run]] = {}
    for run in runs:
        group = groups.setdefault((run.name, replace(run.recipe, seed=0)), [])
        twin = next((other for other in group if other.recipe.seed == run.recipe.seed), None)
        if twin is not None:
            raise RunError(
                f"{twin.directory} and {run.directory} are the same run of {run.name}, seed {run.recipe.seed}: "
                "name one of them, or the spread over seeds is wrong"
            )
        group.append(run)
    return [sorted(group, key=lambda run: run.recipe.seed) for group in groups.values()]


def labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Return a label for each group, no two alike: the recipe's name and, of its variants, the overrides that differ.

    Variants that no override tells apart (a recipe file that was edited between runs) are numbered.
    """
    variants: dict[str, list[set[str]]] = {}
    for group in groups:
        variants.setdefault(group[0].name, []).append(set(group[0].overrides))
    made: list[str] = []
    for group in groups:
        shared = set.intersection(*variants[group[0].name])
        own = [_brief(override) for override in dict.fromkeys(group[0].overrides) if override not in shared]
        label = " ".join([group[0].name, *own])
        count = sum(other == label or other.startswith(f"{label} (") for other in made)
        made.append(f"{label} ({count + 1})" if count else label)
    return made


def _brief(override: str) -> str:
    """Return an override with the last two parts of its field: method.training.steps=4 -> training.steps=4."""
    field, equals, value = override.partition("=")
    return ".".join(field.split(".")[-2:]) + equals + value


def short(names: Sequence[str], dataset: str) -> list[str]:
    """Return labels of one data set's groups for where its name is given already: without it, if that is no loss."""
    brief = [name.removeprefix(f"{dataset}/") for name in names]
    return [one if brief.count(one) == 1 else name for one, name in zip(brief, names, strict=True)]


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
            _row(group, label, selection, [run.history[k] for run, k in zip(group, places, strict=True)])
            for selection, places in chosen.items()
        ]
    return rows


def _row(group: list[Run], label: str, selection: str, chosen: list[Evaluation]) -> Row:
    first, seeds = group[0], tuple(run.recipe.seed for run in group)
    sets = "".join(f" --set {shlex.quote(override)}" for override in first.overrides)
    root = " --data-root DATA" if first.recipe.data.needs_root else ""
    return Row(
        recipe=first.name,
        label=label,
        dataset=first.recipe.data.name,
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
    )


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


def write_comparison(rows: Sequence[Row], folder: Path) -> None:
    """Write `comparison.md`, `comparison.csv` and `summary.json` into `folder`."""
    write_text(folder / "comparison.md", markdown(rows))
    write_text(folder / "comparison.csv", comma_separated(rows))
    write_text(folder / "summary.json", json.dumps(summary(rows), indent=2, ensure_ascii=False) + "\n")


def markdown(rows: Sequence[Row]) -> str:
    """Return a Markdown table, and below it a note for each row of last steps that is marked."""
    names = _metric_names(rows)
    head = ("recipe", "step taken", *names, "seeds")
    lines = [head, ("---",) * len(head)]
    lines += [
        (
            f"{row.label} {row.marks}".strip(),
            row.selection,
            *(str(row.metrics.get(name, "")) for name in names),
            str(len(row.seeds)),
        )
        for row in rows
    ]
    escaped = ([cell.replace("|", r"\|") for cell in line] for line in lines)
    table = "\n".join(f"| {' | '.join(line)} |" for line in escaped) + "\n"
    return table + "".join(f"\n{note}\n" for note in footnotes(rows))


def comma_separated(rows: Sequence[Row]) -> str:
    """Return the comparison as CSV, a column for each number."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = _metric_names(rows)
    columns = [f"{_key(name)}_{number}" for name in names for number in ("mean", "std")]
    facts = ("recipe", "label", "dataset", "method", "selection")
    writer.writerow([*facts, *columns, "steps", "seeds", "below_floor", "diverged", "command"])
    for row in rows:
        known = [row.metrics.get(name) for name in names]
        numbers = [number for spread in known for number in (("", "") if spread is None else (spread.mean, spread.std))]
        steps, seeds = (" ".join(map(str, values)) for values in (row.steps, row.seeds))
        named = (row.recipe, row.label, row.dataset, row.method, row.selection)
        writer.writerow([*named, *numbers, steps, seeds, row.below_floor, row.diverged, row.command])
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
