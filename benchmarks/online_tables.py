"""Tables and the plot of what `benchmarks.online` has measured."""

from __future__ import annotations

from itertools import product
from statistics import mean, stdev
from typing import Any

import matplotlib.pyplot as plt

from benchmarks.online_data import COUNTS, NOISES
from steelyard.experiments.compare.plots import svg

__all__ = ["LOSSES", "drawing", "newest", "table"]

NAMES = {"few": "features, 3,000", "all": "features, 49,000", "pixels": "ResNet, 2,000"}
_OURS = ("LearningToReweight", "MetaWeightNet")

LOSSES = [0.25 * number for number in range(33)]


def newest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows, of those that were measured again the last, in the order in which they came first."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        kind = "memory" if "memory" in row else "tuned" if "tuned" in row else ""
        key = [row.get(name) for name in ("net", "images", "tuned", "noise", "way", "seed")]
        found[(kind, *key)] = row
    return list(found.values())


def table(rows: list[dict[str, Any]]) -> str:
    """Return the tables in Markdown, as the page has them: time of a step, memory, what was trained."""
    timed = [row for row in rows if "net" in row]
    floors = {row["net"]: row["seconds"] for row in timed if "floor" in row["way"]}
    steps = [
        [row["net"], _called(row["way"]), f"{1e3 * row['seconds']:.{0 if row['seconds'] > 0.1 else 1}f}", beside]
        for row in timed
        if (beside := f"{row['seconds'] / floors[row['net']]:.2f}") and row["way"] != "plain step"
    ]
    held = [[_called(row["way"]), *(f"{one:.1f}" for one in row["memory"])] for row in rows if "memory" in row]
    trained = [
        [NAMES[images], noise, f"{own[0]['rate']:g}", _called(way), _over(own, "test"), _over(own, "AUROC"), spent]
        for (images, noise, way), own in _by_way(rows).items()
        if (spent := f"{mean(row['seconds'] for row in own):.1f}")
    ]
    tables = [
        _markdown(["net", "way", "ms a step", "beside the floor"], _sparse(steps, 1)),
        _markdown(["way", "MB after 50 steps", "after 250"], held),
        _markdown(["images", "noise", "rate", "way", "test accuracy", "AUROC", "CPU s"], _sparse(trained, 2)),
    ]
    return "\n\n".join(tables)


def _by_way(rows: list[dict[str, Any]]) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """Return the trained rows of each kind of images, noise and way, in the order of the benchmark's."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for images, noise in product(COUNTS, NOISES):
        for row in rows:
            if row.get("images") == images and row["noise"] == noise:
                found.setdefault((images, noise, row["way"]), []).append(row)
    return found


def _called(way: str) -> str:
    """Return a way as the page calls it: what the package has as code."""
    name, comma, option = way.partition(", normalise=")
    return f"`{name}`" + f", `normalise={option}`" * bool(comma) if name in _OURS else way


def _sparse(lines: list[list[str]], columns: int) -> list[list[str]]:
    """Return the lines with their first cells left blank where they are those of the line before."""
    befores = [[], *lines][: len(lines)]
    return [
        [*([""] * columns if before[:columns] == line[:columns] else line[:columns]), *line[columns:]]
        for before, line in zip(befores, lines, strict=True)
    ]


def _markdown(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


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
        axes.set(xlabel="loss of a sample", title=f"{NAMES[images]} images", ylim=(0, 1.05))
        axes.legend(fontsize=8, loc="lower right")
    all_axes[0][0].set(ylabel="weight")
    return svg(figure)


def _over(rows: list[dict[str, Any]], key: str) -> str:
    values = [row[key] for row in rows if key in row]
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "") if values else ""
