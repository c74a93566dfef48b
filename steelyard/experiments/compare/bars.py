"""The bar chart of a comparison, as SVG text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from steelyard.experiments.compare.plots import COLOURS, STYLE, svg, wrapped
from steelyard.experiments.compare.rows import Spread

__all__ = ["Bars", "accuracy_bars"]

BAR, GAP = 0.38, 0.02  # heights, where a method has 1
LINE, MARGIN = 0.36, 1.15  # inches: of a method (at least), and of titles and axis labels together
PALETTE = (COLOURS[0], COLOURS[4], COLOURS[2])  # dark, light, between: told apart in grey too


@dataclass(frozen=True)
class Bars:
    """One panel: what was measured, and for each method (the same ones in every panel) its bars by series."""

    title: str
    methods: Mapping[str, Mapping[str, Spread]]


def accuracy_bars(panels: Sequence[Bars], title: str) -> str:
    """Draw horizontal bars, a line a method: the mean over seeds, its standard deviation, and a dot for each seed.

    Args:
        panels: side by side, at least one; accuracies in [0, 1].
        title: of the figure.

    Methods stand in the order of the first panel, the first one on top. A method with one seed has a bar alone.
    """
    methods = list(panels[0].methods)
    series = list(dict.fromkeys(name for bars in panels[0].methods.values() for name in bars))
    with matplotlib.rc_context(STYLE):
        names = [wrapped(name, 30) for name in methods]
        height = max(LINE, 0.17 * (1 + max(name.count("\n") for name in names)))
        figure = Figure(figsize=(9.2, MARGIN + height * len(methods)))
        drawn = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, panel in zip(drawn, panels, strict=True):
            for place, one in enumerate(series):
                shift = (place - (len(series) - 1) / 2) * (BAR + GAP)
                lines = [line for line, name in enumerate(methods) if one in panel.methods[name]]
                spreads = [panel.methods[methods[line]][one] for line in lines]
                _series(axes, [line + shift for line in lines], spreads, PALETTE[place], one)
            axes.set(xlim=(0, 100), xlabel=panel.title)
            axes.xaxis.set_major_locator(MultipleLocator(20 if len(panels) == 1 else 50))
            axes.grid(visible=False, axis="y")
        drawn[0].set_yticks(range(len(methods)), names)
        drawn[0].set_ylim(len(methods) - 0.4, -0.6)
        figure.suptitle(title, fontsize=12)
        figure.legend(*drawn[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
        return svg(figure)


def _series(axes: Axes, heights: Sequence[float], spreads: Sequence[Spread], colour: str, label: str) -> None:
    """Draw the bars of one series, each at its height."""
    axes.barh(heights, [100 * spread.mean for spread in spreads], BAR, color=colour, alpha=0.8, label=label)
    for height, spread in zip(heights, spreads, strict=True):
        if spread.count > 1:
            axes.errorbar(
                100 * spread.mean, height, xerr=100 * spread.std, color="#1d2939", linewidth=1.2, capsize=2.5, zorder=3
            )
            values = [100 * value for value in spread.values]
            axes.scatter(
                values, [height] * len(values), s=13, color="white", edgecolors="#1d2939", linewidths=0.8, zorder=4
            )
