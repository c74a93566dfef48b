"""The report's plots, as SVG text: no pyplot, no global state, the same bytes for the same data."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, LogFormatterMathtext

__all__ = [
    "COLOURS",
    "STYLE",
    "accuracy_curves",
    "distributions",
    "histograms",
    "legend_below",
    "outer_steps",
    "plain_number",
    "svg",
    "wrapped",
]

# Okabe and Ito's palette: readers with any common colour vision tell these apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":")  # past the last colour: the same ones again, dashed
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlepad": 12,
    "axes.titlesize": 12,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e7ec",
    "axes.edgecolor": "#98a2b3",
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "svg.hashsalt": "steelyard",
    "svg.fonttype": "none",  # text stays text: small, sharp, searchable
    "figure.constrained_layout.use": True,
}

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

Curves = Mapping[str, Sequence[tuple[Sequence[int], Sequence[float]]]]
"""Name -> one (steps, values) for each seed."""


def accuracy_curves(
    curves: Curves,
    title: str,
    y_label: str,
    reference: float | None = None,
    band: bool = True,
    top: float | None = 1.0,
) -> str:
    """Draw values over the share of the run that is done, a line for each name: the mean over seeds, and their range.

    Args:
        curves: the values, accuracies in [0, 1], or others with another `top`.
        title: of the plot.
        y_label: of the axis.
        reference: height of a dashed line, the accuracy of the oracle.
        band: draw the range; the bands of many names hide each other.
        top: upper end of the axis; None: what the values need.
    """
    names = [wrapped(name, 40) for name in curves]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 4.2))
        axes = figure.subplots()
        grid = np.linspace(0, 100, 201)
        for number, (colour, name, seeds) in enumerate(zip(_cycle(len(curves)), names, curves.values(), strict=True)):
            values = np.stack([np.interp(grid, 100 * np.array(x) / x[-1], y) for x, y in seeds])
            first = max(100 * x[0] / x[-1] for x, _ in seeds)  # no line before the first evaluation
            shown = grid >= first
            line = LINES[number // len(COLOURS) % len(LINES)]
            dot = "o" if shown.sum() == 1 else None  # evaluated once: a line of one point is not seen
            mean, low, high = values.mean(0)[shown], values.min(0)[shown], values.max(0)[shown]
            axes.plot(grid[shown], mean, line, color=colour, label=name, linewidth=2, marker=dot, clip_on=dot is None)
            if band:
                axes.fill_between(grid[shown], low, high, color=colour, alpha=0.15, linewidth=0)
        if reference is not None:
            axes.axhline(reference, color="#475467", linestyle="--", linewidth=1.2, label="oracle without colour")
        axes.set(xlabel="share of the run done (%)", ylabel=y_label, xlim=(0, 100), ylim=(0, top))
        figure.suptitle(title, fontsize=12)  # over all of the figure, which is wider than the axes
        legend_below(figure, axes)
        return svg(figure)


def distributions(samples: pandas.DataFrame, fact: str, names: Mapping[bool, str]) -> str:
    """Draw the distributions of keep-probability and of weight, samples split by a boolean column.

    Args:
        samples: with columns probability, weight and `fact`.
        fact: the column to split by.
        names: what to call the samples where the fact is true, and where it is false.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 3.3))
        left, right = figure.subplots(1, 2)
        _histogram(left, samples, "probability", "keep-probability", (0.0, 1.0), fact, names)
        top = max(float(samples["weight"].max()), 1.0) * 1.02
        _histogram(right, samples, "weight", "weight", (0.0, top), fact, names)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
        return svg(figure)


def histograms(weights: Sequence[float], probabilities: Sequence[float]) -> str:
    """Draw how many samples have each keep-probability, and each weight."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 3.0))
        left, right = figure.subplots(1, 2)
        share = [100 / max(len(weights), 1)] * len(weights)
        top = max(*weights, 1.0) * 1.02
        for axes, values, name, high in (
            (left, probabilities, "keep-probability", 1.0),
            (right, weights, "weight", top),
        ):
            axes.hist(values, bins=25, range=(0, high), weights=share, color=COLOURS[0], alpha=0.75)
            axes.set(xlabel=name, ylabel="share of the samples (%)", xlim=(0, high))
        return svg(figure)


def outer_steps(histories: Mapping[str, Sequence[Mapping[str, float]]], count: int) -> str:
    """Draw how an outer optimisation went, over its outer steps: its risk, the share kept, the gradient's norms.

    Args:
        histories: for each seed (its name in the legend) a row a step, as `reweight.Maple` reports them: step (from 0),
            outer_loss, kept, and NAME_gradient_norm of whatever is learned.
        count: number of training samples, what the share kept is of.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 3.1))
        risk, kept, norms = figure.subplots(1, 3)
        for colour, (name, rows) in zip(_cycle(len(histories)), histories.items(), strict=True):
            steps = [row["step"] + 1 for row in rows]
            risk.plot(steps, [row["outer_loss"] for row in rows], color=colour, label=name)
            kept.plot(steps, [100 * row["kept"] / count for row in rows], color=colour)
            for learned, line in (("probabilities", "-"), ("weights", ":")):
                if all(f"{learned}_gradient_norm" in row for row in rows):
                    norms.plot(steps, [row[f"{learned}_gradient_norm"] for row in rows], line, color=colour)
        risk.set(xlabel="outer step", title="outer risk")
        kept.set(xlabel="outer step", title="samples kept (%)", ylim=(0, None))
        norms.set(xlabel="outer step", title="gradient norm")
        if all(np.isfinite(line.get_ydata()).any() and np.nanmin(line.get_ydata()) > 0 for line in norms.get_lines()):
            norms.set_yscale("log")
        legend_below(figure, risk)
        return svg(figure)


def _histogram(
    axes: Axes,
    samples: pandas.DataFrame,
    column: str,
    label: str,
    span: tuple[float, float],
    fact: str,
    names: Mapping[bool, str],
) -> None:
    for colour, (value, name) in zip(COLOURS, names.items(), strict=False):
        part = samples.loc[samples[fact] == value, column].to_numpy()
        if len(part):
            share = np.full(len(part), 100 / len(part))
            axes.hist(
                part, bins=20, range=span, weights=share, color=colour, alpha=0.45, label=f"{name} (n = {len(part):,})"
            )
            axes.hist(part, bins=20, range=span, weights=share, color=colour, histtype="step", linewidth=1.6)
            axes.axvline(part.mean(), color=colour, linestyle=":", linewidth=1.6)
    axes.set(xlabel=f"{label} (dotted: mean)", ylabel="share of the samples (%)", xlim=span)


def legend_below(figure: Figure, axes: Axes) -> None:
    """Put the legend of `axes` below all axes of the figure, which grows by its height: it takes no room from them."""
    handles, labels = axes.get_legend_handles_labels()
    heights = [label.count("\n") + 1 for label in labels]
    widest = max((len(line) for label in labels for line in label.splitlines()), default=0)
    columns = max(1, min(len(labels), int(11 * figure.get_figwidth() / (widest + 7))))  # 11 characters an inch
    rows = max(1, -(-len(labels) // columns))
    lines = max((sum(heights[first : first + rows]) for first in range(0, len(labels), rows)), default=0)
    figure.set_figheight(figure.get_figheight() + 0.24 * lines)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def wrapped(name: str, width: int) -> str:
    """Return `name` in at most four lines of `width` characters: a long one takes little room from the plot.

    Example:
        >>> wrapped('maple_100 risk.shape="log" method.beta1=0.9', 26).splitlines()
        ['maple_100 risk.shape="log"', 'method.beta1=0.9']
    """
    return "\n".join(textwrap.wrap(name, width, max_lines=4, placeholder=" …")) or name


def _cycle(count: int) -> list[str]:
    return [COLOURS[k % len(COLOURS)] for k in range(count)]


def svg(figure: Figure) -> str:
    """Return a figure as SVG text; the caller draws it under `STYLE`."""
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        _write_plain_numbers(axis)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _write_plain_numbers(axis: Axis) -> None:
    """Label a logarithmic axis without TeX, which `STYLE` would show as it is written, and leave room for."""
    for formatter, change in (
        (axis.get_major_formatter(), axis.set_major_formatter),
        (axis.get_minor_formatter(), axis.set_minor_formatter),
    ):
        if isinstance(formatter, LogFormatterMathtext):
            base = axis.get_transform().base  # type: ignore[attr-defined]
            change(_PlainLog(base, formatter.labelOnlyBase, formatter.minor_thresholds))


class _PlainLog(LogFormatter):
    """Label the ticks that matplotlib would label, with `plain_number`."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Return the label of the tick at `x`, which may be none."""
        return plain_number(x) if super().__call__(x, pos) else ""


def plain_number(x: float) -> str:
    """Return a tick's number in plain text.

    Example:
        >>> plain_number(0.001), plain_number(2e-05), plain_number(1e5), plain_number(1e10), plain_number(-1e-7)
        ('0.001', '2×10⁻⁵', '100,000', '10¹⁰', '−10⁻⁷')
    """
    digits, _, exponent = f"{x:,g}".partition("e")
    if exponent:
        power = "10" + str(int(exponent)).translate(_RAISED)
        digits = {"1": power, "-1": f"-{power}"}.get(digits, f"{digits}×{power}")
    return digits.replace("-", "−")
