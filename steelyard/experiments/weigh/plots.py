"""The plots of the page of `steelyard weigh`, as SVG text."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from steelyard.experiments.compare.plots import COLOURS, STYLE, legend_below, svg
from steelyard.experiments.weigh.figures import Calibration

__all__ = ["calibration"]


def calibration(named: Sequence[tuple[str, Calibration]]) -> str:
    """Draw accuracy over confidence, a line for each model; on the dashed line a model is as right as it is sure."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 4.0))
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], "--", color="#475467", linewidth=1.2, label="as right as it is sure")
        for colour, (name, found) in zip(COLOURS, named, strict=False):
            sure, right = [one[3] for one in found.bins], [one[4] for one in found.bins]
            sizes = [4 + 120 * one[2] / max(other[2] for other in found.bins) for one in found.bins]
            axes.plot(sure, right, color=colour, label=name, linewidth=1.8)
            axes.scatter(sure, right, s=sizes, color=colour, alpha=0.6, linewidth=0)
        low = min((one[3] for _, found in named for one in found.bins), default=0.5)
        axes.set(xlabel="how sure the model is", ylabel="share of right answers")
        axes.set(xlim=(max(0, low - 0.05), 1), ylim=(0, 1))
        legend_below(figure, axes)
        return svg(figure)
