"""The plots of a comparison, from its runs: test accuracy while training, and the bar chart over methods."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from steelyard._support._files import write_text
from steelyard.experiments.compare import plots
from steelyard.experiments.compare.bars import Bars, accuracy_bars
from steelyard.experiments.compare.rows import BEST_ON_TEST, Row, Spread, compare
from steelyard.experiments.compare.run_groups import group_runs, labels, short
from steelyard.experiments.data import called
from steelyard.experiments.runs.run import Run
from steelyard.experiments.training.evaluation import SplitMetrics

__all__ = ["plot_names", "test_bars", "test_curves", "write_plots"]

_ENDINGS = (".svg", "_bars.svg")  # curves, bars
_PANELS = {
    "test accuracy": "test accuracy (%)",
    "test adjusted accuracy": "test, adjusted average (%)",
    "test worst-group accuracy": "test, worst group (%)",
}


def plot_names(runs: Sequence[Run]) -> list[str]:
    """Return the names of all files that `write_plots` may write."""
    names = dict.fromkeys(called(run.recipe.data) for run in runs)
    return [f"{name}{ending}" for name in names for ending in _ENDINGS]


def write_plots(runs: Sequence[Run], folder: Path) -> list[str]:
    """Write ``<data set>.svg`` and ``<data set>_bars.svg`` for each data set; return the names of the files.

    A regression has curves alone, of its squared error.
    """
    written = []
    for name in dict.fromkeys(called(run.recipe.data) for run in runs):
        own = [run for run in runs if called(run.recipe.data) == name]
        bars = None if own[0].history[-1].test.errors is not None else test_bars(own)
        for ending, plot in zip(_ENDINGS, (test_curves(own), bars), strict=True):
            if plot is not None:
                write_text(folder / f"{name}{ending}", plot)
                written.append(f"{name}{ending}")
    return written


def test_curves(runs: Sequence[Run]) -> str | None:
    """Return the plot of test accuracy over the runs of one data set, as SVG; None if all of them are oracles.

    Of a regression it is the test split's mean squared error.
    """
    groups = group_runs(runs)
    names = short(labels(groups), called(runs[0].recipe.data))
    oracles = [group for group in groups if group[0].recipe.data.grayscale]
    oracle = compare(oracles[0])[0].test.mean if oracles else None  # the first row: the last step
    curves = {
        name: [([e.visible.step for e in run.history], [_figure(e.test) for e in run.history]) for run in group]
        for name, group in zip(names, groups, strict=True)
        if not group[0].recipe.data.grayscale
    }
    if not curves:
        return None
    band = len(curves) <= len(plots.COLOURS)
    if runs[0].history[-1].test.errors is not None:
        title = f"Squared error on the test split while training (mean over seeds{'; band: lowest to highest' * band})"
        return plots.accuracy_curves(curves, title, "test MSE", None, band, top=None)
    title = f"Test accuracy while training (mean over seeds{'; band: lowest to highest' * band})"
    return plots.accuracy_curves(curves, title, "test accuracy", oracle, band)


def _figure(test: SplitMetrics) -> float:
    return test.accuracy if test.errors is None else test.errors.mse


def test_bars(runs: Sequence[Run]) -> str:
    """Return the bar chart over the methods of one data set, as SVG: the last step, and the one selected on validation.

    The highest mean at the last step stands on top. Where the data set has groups, the adjusted average and the worst
    group have panels of their own.
    """
    rows = [row for row in compare(runs) if row.selection != BEST_ON_TEST]
    last = sorted((row for row in rows if row.selection == "last"), key=lambda row: -row.test.mean)
    order = [row.label for row in last]
    names = {
        row.label: f"{name} (sees no colour)" if row.oracle else name
        for row, name in zip(last, short(order, called(runs[0].recipe.data)), strict=True)
    }
    panels = [
        Bars(title, {names[label]: _bars([row for row in rows if row.label == label], metric) for label in order})
        for metric, title in _PANELS.items()
        if any(metric in row.metrics for row in rows)
    ]
    several = any(len(row.seeds) > 1 for row in rows)
    told = " (mean over seeds, line: standard deviation, dot: a seed)" if several else " (one seed)"
    return accuracy_bars(panels, f"Accuracy on {called(runs[0].recipe.data)}{told}")


def _bars(rows: Sequence[Row], metric: str) -> dict[str, Spread]:
    """Return a method's bars: of its last step and, where it is another one, of its selected step."""
    return {
        "last step" if row.selection == "last" else "selected on validation": row.metrics[metric]
        for row in rows
        if metric in row.metrics
    }
