"""Figures of the benchmark."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas
from matplotlib.figure import Figure

from steelyard.experiments.compare import plots
from studies.priors.tables import PLAIN

__all__ = ["accuracies", "curves"]

_ACROSS = 5


def accuracies(table: pandas.DataFrame) -> str:
    """Draw the last models' test accuracy, a panel for each condition, a row for each method; as SVG.

    Dots: over balanced colours, with the standard deviation over seeds; rings: over the test split as it is.

    Args:
        table: of `grouped` by kind, share and method.
    """
    panels = list(table.groupby(["kind", "share"], sort=False))
    methods = list(dict.fromkeys(table["method"]))
    with matplotlib.rc_context(plots.STYLE):
        lines, across = -(-len(panels) // _ACROSS), min(len(panels), _ACROSS)
        drawing = Figure(figsize=(2.6 + 2.3 * across, 0.7 + (0.7 + 0.3 * len(methods)) * lines))
        axes = drawing.subplots(lines, across, sharex=True, sharey=True, squeeze=False).ravel()
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        for axis, ((kind, share), rows) in zip(axes, panels, strict=False):
            where = [methods.index(method) for method in rows["method"]]
            mean, std = 100 * rows["test_balanced_mean"].to_numpy(), 100 * rows["test_balanced_std"].to_numpy()
            colour = [plots.COLOURS[0 if method.startswith(PLAIN) else 6] for method in rows["method"]]
            axis.axvline(50, color="#98a2b3", linestyle=":", linewidth=1.2)
            axis.errorbar(mean, where, xerr=std, fmt="none", ecolor="#98a2b3", elinewidth=1.5, zorder=1)
            axis.scatter(mean, where, c=colour, s=28, zorder=2, label="colours balanced")
            last = 100 * rows["test_last_mean"].to_numpy()
            axis.scatter(last, where, s=28, facecolors="none", edgecolors=colour, zorder=2, label="test split as it is")
            axis.set(title=_title(kind, share), xlim=(0, 100))
        for axis in axes[max(0, len(panels) - across) : len(panels)]:
            axis.set_xlabel("test accuracy (%)")
            axis.xaxis.set_tick_params(labelbottom=True)
        axes[0].set_yticks(range(len(methods)), methods)
        axes[0].invert_yaxis()
        drawing.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
        return plots.svg(drawing)


def _title(kind: str, share: float) -> str:
    return f"{kind.replace('_', ' ')}, {100 * share:g} %" if share else "no corruption"


def curves(cells: pandas.DataFrame, conditions: Sequence[tuple[str, float]]) -> str:
    """Draw test accuracy over the outer steps of the methods that have them: the mean over seeds; as SVG."""
    learned = cells[cells["curve"].map(len) > 0]
    methods = list(dict.fromkeys(learned["method"]))
    with matplotlib.rc_context(plots.STYLE):
        drawing = Figure(figsize=(4.4 * len(conditions), 3.6))
        axes = drawing.subplots(1, len(conditions), sharey=True, squeeze=False)[0]
        for axis, (kind, share) in zip(axes, conditions, strict=True):
            for number, method in enumerate(methods):
                chosen = (learned["kind"] == kind) & (learned["share"] == share) & (learned["method"] == method)
                values = [np.array(curve) for curve in learned.loc[chosen, "curve"]]
                if values:
                    colour = plots.COLOURS[number % len(plots.COLOURS)]
                    mean = 100 * np.mean(values, axis=0)
                    axis.plot(range(1, len(mean) + 1), mean, color=colour, label=method, linewidth=1.8)
            axis.set(title=_title(kind, share), xlabel="outer step")
        axes[0].set_ylabel("test accuracy (%)")
        drawing.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
        return plots.svg(drawing)
