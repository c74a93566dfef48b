"""Tables of active learning runs, laid out like the paper's: a row a method, a column a kind of noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steelyard.experiments.active.run import ActiveRun
from steelyard.experiments.compare.rows import Spread
from steelyard.experiments.compare.spreadsheet import table_text
from steelyard.experiments.errors import RunError

__all__ = ["Cell", "Cells", "cells", "markdown", "noise_title", "rounds_table", "summary"]

Cell = tuple[str, bool, str]
"""Selector, with fine-tuning or not, kind of noise."""

_SUMMARISED = ("test", "robust_test", "test_learnable", "average_test", "validation", "clean_share_selected")


@dataclass(frozen=True)
class Cells:
    """The runs of one recipe by cell, and what their last rounds ended with.

    Attributes:
        dataset: the data set's name.
        runs: the runs of each cell, a run a seed.
    """

    dataset: str
    runs: Mapping[Cell, Sequence[ActiveRun]]

    def last(self, metric: str) -> dict[Cell, Spread]:
        """Return a figure of the last round of each cell that has it, over its seeds."""
        return {
            cell: Spread.of([run.history[-1][metric] for run in runs])
            for cell, runs in self.runs.items()
            if all(metric in run.history[-1] for run in runs)
        }


def cells(runs: Sequence[ActiveRun]) -> Cells:
    """Return the runs by cell, in the order in which they are given.

    Raises:
        RunError: no runs, runs of different data sets, or two of one cell and one seed.
    """
    if not runs:
        raise RunError("name at least one run")
    found: dict[Cell, list[ActiveRun]] = {}
    for run in runs:
        if run.recipe.data.name != runs[0].recipe.data.name:
            raise RunError(f"{runs[0].directory} and {run.directory} are runs on different data sets")
        group = found.setdefault((run.recipe.selector, run.recipe.fine_tune, run.recipe.noise.name), [])
        twin = next((other for other in group if other.recipe.seed == run.recipe.seed), None)
        if twin is not None:
            raise RunError(f"{twin.directory} and {run.directory} are runs of the same method, noise and seed")
        group.append(run)
    return Cells(runs[0].recipe.data.name, found)


def markdown(values: Mapping[Cell, Spread]) -> str:
    """Return a table in per cent, mean ± standard deviation over seeds; the rows with fine-tuning come last."""
    noises = list(dict.fromkeys(noise for _, _, noise in values))
    methods = sorted(dict.fromkeys((selector, tuned) for selector, tuned, _ in values), key=lambda method: method[1])
    lines = [["method", *map(noise_title, noises)], ["---"] * (1 + len(noises))]
    for selector, tuned in methods:
        row = [values.get((selector, tuned, noise)) for noise in noises]
        lines.append([_label(selector, tuned), *("" if spread is None else spread.percent() for spread in row)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def noise_title(noise: str) -> str:
    """Return what a kind of noise is called over a column or a panel."""
    return "no noise added" if noise == "none" else noise


def _label(selector: str, tuned: bool) -> str:
    return selector.upper() + (" + FT" if tuned else "")


def rounds_table(found: Cells) -> str:
    """Return the figures of every round of every run as CSV."""
    rows = [
        {"noise": noise, "selector": selector, "fine_tune": int(tuned), "seed": run.recipe.seed, "round": k, **figures}
        for (selector, tuned, noise), runs in found.runs.items()
        for run in runs
        for k, figures in enumerate(run.history)
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    shown = ({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()} for row in rows)
    return table_text(columns, ([row.get(name, "") for name in columns] for row in shown))


def summary(found: Cells, recipe: str, command: str) -> list[dict[str, object]]:
    """Return the rows of a `summary.json` under results/: accuracies and clean shares after the last round."""
    return [
        {
            "recipe": recipe,
            "dataset": found.dataset,
            "method": f"{_label(selector, tuned)} ({noise})",
            "metric": metric,
            "selection": "last",
            "mean": _rounded(spread.mean),
            "std": _rounded(spread.std),
            "seeds": [run.recipe.seed for run in found.runs[(selector, tuned, noise)]],
            "command": command,
        }
        for metric in _SUMMARISED
        for (selector, tuned, noise), spread in found.last(metric).items()
    ]


def _rounded(value: float) -> float | None:
    return None if value != value else round(value, 6)  # NaN: a run of no rounds has selected nothing
