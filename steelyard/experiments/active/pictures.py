"""Pictures of active learning runs: learning curves, and the plane of Four-Moons."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steelyard.experiments.active.run import ActiveRun, data_of
from steelyard.experiments.active.state import check_picked, take_over
from steelyard.experiments.active.tables import Cells, noise_title
from steelyard.experiments.compare.plots import COLOURS, STYLE, svg
from steelyard.experiments.data.splits import Splits
from steelyard.experiments.runs.folder import ACTIVE_STATE

__all__ = ["learning_curves", "moons_picture"]

_MARKS = ("-", "--")
_MOONS = ("#0072B2", "#009E73", "#E69F00", "#CC79A7")


def learning_curves(found: Cells, metric: str = "test", label: str = "test accuracy (%)") -> str:
    """Draw a figure of the rounds over the number of labelled samples as SVG: the mean over seeds, and their range.

    A column for each kind of noise; runs with fine-tuning, where there are any, in a row of their own.
    """
    noises = list(dict.fromkeys(noise for _, _, noise in found.runs))
    tunings = sorted({tuned for _, tuned, _ in found.runs})
    selectors = list(dict.fromkeys(selector for selector, _, _ in found.runs))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.6 + 3.4 * len(noises), 0.6 + 3.0 * len(tunings)))
        grid = figure.subplots(len(tunings), len(noises), squeeze=False, sharex=True, sharey=True)
        for axes, tuned in zip(grid, tunings, strict=True):
            for panel, noise in zip(axes, noises, strict=True):
                for k, selector in enumerate(selectors):
                    _curve(panel, found.runs.get((selector, tuned, noise), ()), metric, k, selector.upper())
                panel.set_title(noise_title(noise) + (", with fine-tuning" if tuned else ""))
            axes[0].set_ylabel(label)
        for panel in grid[-1]:
            panel.set_xlabel("labelled samples")
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False)
        return svg(figure)


def _curve(axes: Axes, runs: Sequence[ActiveRun], metric: str, k: int, name: str) -> None:
    if not runs:
        return
    x = [row["labelled"] for row in runs[0].history]
    values = 100 * np.array([[row[metric] for row in run.history] for run in runs])
    colour, mark = COLOURS[k % len(COLOURS)], _MARKS[k // len(COLOURS) % len(_MARKS)]
    axes.plot(x, values.mean(0), mark, color=colour, label=name, linewidth=1.8)
    axes.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.12, linewidth=0)


def moons_picture(runs: Sequence[ActiveRun]) -> bytes:
    """Draw Four-Moons as PNG: for each run the regions of its last model and the points that it labelled.

    Dots: points of the three moons that can be learned; crosses: points whose labels are noise. Both in the colour of
    the label that the oracle gave.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.4 * len(runs), 4.3))
        panels = figure.subplots(1, len(runs), squeeze=False)[0]
        for axes, run in zip(panels, runs, strict=True):
            splits = data_of(run.recipe)
            check_picked(run.directory / ACTIVE_STATE, run.picked, len(splits.train))
            _regions(axes, run, splits)
            _picked(axes, run, splits)
            last = run.history[-1]
            axes.set_title(
                f"{run.recipe.label}: test {100 * last['test']:.1f} %, "
                f"three moons {100 * last['test_learnable']:.1f} %\n"
                f"{100 * last['clean_share_selected']:.0f} % of the selected points are clean"
            )
            axes.grid(visible=False)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=90, metadata={"Software": None})
        return image.getvalue()


def _regions(axes: Axes, run: ActiveRun, splits: Splits) -> None:
    model = run.recipe.build(splits, 0)
    take_over(run.directory / ACTIVE_STATE, model, run.model)
    x, y = np.meshgrid(np.linspace(-1.6, 6.6, 300), np.linspace(-1.1, 1.6, 200))
    plane = torch.tensor(np.stack([x.ravel(), y.ravel()], 1), dtype=torch.float32)
    with torch.no_grad():
        decision = model.eval()(plane).argmax(1).numpy().reshape(x.shape)
    axes.contourf(x, y, decision, levels=np.arange(5) - 0.5, colors=_MOONS, alpha=0.22)


def _picked(axes: Axes, run: ActiveRun, splits: Splits) -> None:
    ids = torch.cat(run.picked)
    points, labels = splits.train.inputs[ids].numpy(), splits.train.targets[ids]
    noisy = splits.facts["noisy"][ids].numpy()
    colours = np.array(_MOONS)[labels.numpy()]
    for part, marker, edge, name in ((noisy, "x", None, "noise"), (~noisy, "o", "#1d2939", "clean")):
        x, y = points[part].T
        axes.scatter(
            x, y, s=14, c=colours[part], marker=marker, edgecolors=edge, linewidths=0.6, label=f"labelled, {name}"
        )
