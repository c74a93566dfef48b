"""Tables and the plot of what `benchmarks.online` has measured."""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

import matplotlib.pyplot as plt

from benchmarks.online_data import COUNTS, NOISES
from steelyard.experiments.compare.plots import svg

__all__ = ["LOSSES", "drawing", "table"]

LOSSES = [0.25 * number for number in range(33)]


def table(rows: list[dict[str, Any]]) -> str:
    """Return the tables in Markdown: time of a step, memory, what was trained."""
    lines = ["| net | way | ms a step | beside the floor |", "|---|---|---|---|"]
    timed = [row for row in rows if "net" in row]
    for row in timed:
        floor = next(r["seconds"] for r in timed if r["net"] == row["net"] and "floor" in r["way"])
        lines.append(f"| {row['net']} | {row['way']} | {1e3 * row['seconds']:.1f} | {row['seconds'] / floor:.2f} |")
    lines += ["", "| way | MB after 50 steps | after 250 |", "|---|---|---|"]
    for row in (row for row in rows if "memory" in row):
        lines.append(f"| {row['way']} | {row['memory'][0]:.1f} | {row['memory'][1]:.1f} |")
    lines += ["", "| images | noise | rate | way | test accuracy | AUROC | CPU s |", "|---|---|---|---|---|---|---|"]
    for images in COUNTS:
        for noise in NOISES:
            measured = [row for row in rows if row.get("images") == images and row["noise"] == noise]
            for way in dict.fromkeys(row["way"] for row in measured):
                own = [row for row in measured if row["way"] == way]
                if own:
                    cells = [_over(own, "test"), _over(own, "AUROC"), f"{mean(row['seconds'] for row in own):.1f}"]
                    lines.append(f"| {images} | {noise} | {own[0]['rate']:g} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def drawing(rows: list[dict[str, Any]]) -> str:
    """Return the plot of the trained weighting functions: weight against loss, a line a seed."""
    shown = [images for images in COUNTS if any(row.get("images") == images for row in rows)]
    figure, all_axes = plt.subplots(
        1, len(shown), figsize=(3.5 * len(shown), 3), layout="constrained", sharey=True, squeeze=False
    )
    for axes, images in zip(all_axes[0], shown, strict=True):
        for number, noise in enumerate(NOISES):
            own = [row for row in rows if row.get("images") == images and row["noise"] == noise]
            own = [row for row in own if row["way"] == "MetaWeightNet"]
            for seed, row in enumerate(own):
                weights = row["weight of a loss"]
                losses = LOSSES if len(weights) == len(LOSSES) else [0.0, 1.0, 2.0, 4.0, 8.0]
                axes.plot(losses, weights, color=f"C{number}", label=None if seed else noise, linewidth=1.2)
        axes.set(xlabel="loss of a sample", title=TITLES[images], ylim=(0, 1.05))
        axes.legend(fontsize=8)
    all_axes[0][0].set(ylabel="weight")
    return svg(figure)


TITLES = {
    "few": "features, 3,000 images",
    "all": "features, 49,000 images",
    "pixels": "small ResNet, 2,000 images",
}


def _over(rows: list[dict[str, Any]], key: str) -> str:
    values = [row[key] for row in rows if key in row]
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "") if values else ""
