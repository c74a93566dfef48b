"""The figures of this study: no pyplot, no global state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steelyard._support._files import atomic_path
from steelyard.experiments.compare.plots import COLOURS

__all__ = ["FIGURES", "draw"]

_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#98a2b3",
    "figure.constrained_layout.use": True,
}
_GREY = "#475467"


@contextmanager
def _figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=130, metadata={"Software": None})


def draw(name: str, table: pandas.DataFrame, path: Path) -> None:
    """Draw the figure of the table `name` to `path` (PNG)."""
    FIGURES[name](table, path)


def _coverage(table: pandas.DataFrame, path: Path) -> None:
    """What 2 R^ + deviation was, and what it had to be, per corruption and (s, q), at the largest n."""
    shown = table[table["n"] == table["n"].max()]
    pairs = list(dict.fromkeys(zip(shown["s"], shown["q"], strict=True)))
    with _figure(path, 10.0, 3.9) as figure:
        panels = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
        for axes, (s, q) in zip(panels, pairs, strict=True):
            rows = shown[(shown["s"] == s) & (shown["q"] == q)]
            place = np.arange(len(rows))
            allowed = rows["twice_complexity"] + rows["deviation"]
            axes.barh(place, allowed, color="#d0d5dd", label="allowed: 2 R̂ + deviation")
            axes.plot(rows["needed"], place, "o", color=COLOURS[1], label="needed in 95% of draws")
            for y, rate in zip(place, rows["coverage"], strict=True):
                axes.text(float(allowed.max()) * 1.02, y, f"{rate:.2%}", va="center", color=_GREY, fontsize=9)
            axes.axvline(0, color=_GREY, linewidth=0.8)
            axes.set(yticks=place, yticklabels=rows["corruption"], title=f"s = {s}, q = {q}", xlabel="loss")
            top = float(allowed.max())
            axes.set_xlim(min(0.0, float(rows["needed"].min())) - 0.06 * top, top * 1.28)
            axes.invert_yaxis()
        draws, n = int(shown["draws"].iloc[0]), int(shown["n"].iloc[0])
        figure.suptitle(
            f"Coverage for all θ (at the right: share of {draws:,} draws) and what had to be allowed; n = {n:,}"
        )
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)


def _gaps(table: pandas.DataFrame, path: Path) -> None:
    """The gap against n: worst over Theta, that of the minimiser of L_q, and -Q."""
    names = list(dict.fromkeys(table["setting"]))
    with _figure(path, 10.0, 5.8) as figure:
        panels = figure.subplots(2, 2, sharex=True)
        series = (
            ("worst_gap", "worst over Θ", "o-"),
            ("chosen_gap", "minimiser of L_q", "s-"),
            ("minus_q", "−Q", "x--"),
        )
        for axes, name in zip(panels.flat, names, strict=True):
            rows = table[table["setting"] == name]
            for colour, (key, label, line) in zip(COLOURS, series, strict=False):
                axes.errorbar(
                    rows["n"], rows[key], 2 * rows[f"{key}_error"], fmt=line, color=colour, label=label, markersize=4
                )
            for key, colour in (("worst_limit", COLOURS[0]), ("chosen_limit", COLOURS[1])):
                axes.axhline(float(rows[key].iloc[0]), color=colour, linewidth=0.8, linestyle=":")
            axes.axhline(0, color=_GREY, linewidth=1)
            low, high = axes.get_ylim()
            axes.set_ylim(min(low, -0.02) - 0.02, max(high, 0.02) + 0.02)
            axes.set(xscale="log", title=name)
            axes.grid(color="#eaecf0")
        for axes in panels[1]:
            axes.set_xlabel("n")
        for axes in panels[:, 0]:
            axes.set_ylabel("E ℓ − L_q(θ; g(D))")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        s, q = int(table["s"].iloc[0]), int(table["q"].iloc[0])
        figure.suptitle(f"Generalisation gap against n (s = {s}, q = {q}; dotted: limits; bars: 2 standard errors)")


def _signs(table: pandas.DataFrame, path: Path) -> None:
    """Q over noise rate and q/s, a panel for each corruption; a dot where the sign is within the noise."""
    names = list(dict.fromkeys(table["corruption"]))
    with _figure(path, 11.0, 6.2) as figure:
        panels = figure.subplots(2, 3, sharex=True, sharey=True)
        image = None
        for axes, name in zip(panels.flat, names, strict=True):
            rows = table[table["corruption"] == name]
            grid = rows.pivot(index="rate", columns="q_over_s", values="factor")
            sign = rows.pivot(index="rate", columns="q_over_s", values="sign").to_numpy()
            image = axes.imshow(grid, origin="lower", aspect="auto", cmap="RdBu", vmin=-0.5, vmax=0.5)
            for y, x in np.argwhere(sign < 0):
                axes.text(x, y, "−", ha="center", va="center", fontsize=9, color="#101828")
            for y, x in np.argwhere(sign == 0):
                axes.text(x, y, "0", ha="center", va="center", fontsize=7, color="#98a2b3")
            axes.set_xticks(range(len(grid.columns)), [f"{value:g}" for value in grid.columns], rotation=60, fontsize=8)
            axes.set_yticks(range(len(grid.index)), [f"{value:g}" for value in grid.index], fontsize=8)
            axes.set_title(name)
        for axes in panels[1]:
            axes.set_xlabel("q / s")
        for axes in panels[:, 0]:
            axes.set_ylabel("noise rate")
        assert image is not None
        figure.colorbar(image, ax=panels, label="Q (− marks Q < 0, 0 what is within 3 standard errors)")
        figure.suptitle("The top-q-biased factor Q of threshold classifiers")


def _terms(table: pandas.DataFrame, path: Path) -> None:
    """The terms of the bound against q, stacked, with the risk that they bound."""
    names = list(dict.fromkeys(table["corruption"]))
    with _figure(path, 10.5, 4.1) as figure:
        panels = figure.subplots(1, len(names), sharey=True)
        for axes, name in zip(panels, names, strict=True):
            rows = table[table["corruption"] == name].sort_values("q")
            place = np.arange(len(rows))
            base = np.zeros(len(rows))
            parts = (("training", "L_q"), ("twice_complexity", "2 R̂"), ("deviation", "deviation"))
            for colour, (key, label) in zip(COLOURS, parts, strict=False):
                axes.bar(place, rows[key], bottom=base, color=colour, alpha=0.75, label=label)
                base = base + rows[key].to_numpy()
            axes.plot(place, rows["bound"], "D", color="black", markersize=5, label="right-hand side (after − Q)")
            axes.plot(place, rows["risk"], "_", color=COLOURS[4], markersize=16, markeredgewidth=3, label="E ℓ")
            axes.set(title=name, xlabel=f"q (of s = {int(rows['s'].iloc[0])})")
            axes.set_xticks(place, [str(q) for q in rows["q"]])
        panels[0].set_ylabel("loss")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
        figure.suptitle(f"Theorem 1 at the minimiser of L_q, n = {int(table['n'].iloc[0]):,}")


def _certificates(table: pandas.DataFrame, path: Path) -> None:
    """DR-IS's radius against what was needed, and the share of certified splits."""
    with _figure(path, 9.2, 4.2) as figure:
        left, right = figure.subplots(1, 2)
        left.plot(table["proxies"], table["radius"], "o-", color=COLOURS[0], label="radius t")
        left.plot(table["proxies"], table["needed"], "s-", color=COLOURS[1], label="needed in 95% of ensembles")
        left.axhline(float(table["gap"].iloc[0]) / 2, color=_GREY, linestyle=":", label="half of the gap")
        left.set(xscale="log", yscale="log", xlabel="proxies K", ylabel="|D − E D|")
        right.plot(table["proxies"], table["certified"], "o-", color=COLOURS[2], label="splits certified")
        right.plot(table["proxies"], table["coverage"], "s--", color=COLOURS[0], label="all |D − E D| ≤ t")
        right.set(xscale="log", xlabel="proxies K", ylabel="share of ensembles", ylim=(-0.05, 1.05))
        for axes in (left, right):  # below the lines, which may be anywhere
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False, ncols=2)
        figure.suptitle(f"Rank-disagreement certificate, N = {int(table['samples'].iloc[0])}")


def _networks(table: pandas.DataFrame, path: Path) -> None:
    """Risk, L_q and the two right-hand sides of each trained network, logarithmic."""
    shown = (
        ("risk", "E ℓ, true labels", "o"),
        ("training", "L_q on noisy labels", "s"),
        ("at_least", "right-hand side, at least", ">"),
        ("at_most", "right-hand side, at most", "<"),
    )
    methods = list(dict.fromkeys(table["method"]))
    with _figure(path, 9.2, 3.4) as figure:
        axes: Axes = figure.subplots()
        for colour, (key, label, marker) in zip(COLOURS, shown, strict=False):
            for y, method in enumerate(methods):
                values = table.loc[table["method"] == method, key]
                axes.plot(values, [y] * len(values), marker, color=colour, label=label if y == 0 else None, alpha=0.8)
        axes.axvline(1.0, color=_GREY, linestyle="--", linewidth=1)
        axes.text(1.05, len(methods) - 0.55, "vacuous from here on", color=_GREY, fontsize=9)
        axes.set(xscale="log", yticks=range(len(methods)), yticklabels=methods, xlabel="ramp loss")
        axes.set_ylim(-0.5, len(methods) - 0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        axes.set_title("Theorem 1 on networks trained on coloured digits (a mark a seed)")


FIGURES: dict[str, Callable[[pandas.DataFrame, Path], None]] = {
    "coverage": _coverage,
    "gaps": _gaps,
    "factor_signs": _signs,
    "terms": _terms,
    "certificates": _certificates,
    "networks": _networks,
}
