"""The report's part about found groups: the histogram of s with the cut, whether it is accepted, and who is above."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import pandas
import torch
from matplotlib.figure import Figure

from steelyard.experiments.compare import plots
from steelyard.experiments.methods import Maple, RefinedMaple
from steelyard.experiments.runs.run import Run
from steelyard.reweight import OneHumpError, find_groups

__all__ = ["groups_section"]

_MOST = 12  # values of a column that are shown, each as a line
_BINS = 40
_COLUMNS, _FIGURES = ("found_group", "maple_probability"), ("cut", "two_means_cut", "high_share", "valley_p")
_SKIPPED = ("index", "weight", "probability", "id", *_COLUMNS)


def groups_section(run: Run, facts: Mapping[str, tuple[str, Mapping[bool, str]]]) -> dict[str, Any] | None:
    """Return what `templates/groups.html.j2` shows of one run of MAPLE; None of another method, or if s is constant.

    Of a run of refined MAPLE it is the groups that it found, in one run or two; where it found none, None.

    Args:
        run: with its samples.
        facts: fact -> (title, {True: name, False: name}): how the values of a column of facts are called.
    """
    samples, method = run.samples, run.recipe.method
    if samples is None:
        return None
    figures = run.history[-1].extra if run.history else {}
    if isinstance(method, RefinedMaple) and set(_COLUMNS) <= set(samples) and set(_FIGURES) <= set(figures):
        high = samples["found_group"].to_numpy()
        return _section(samples, "maple_probability", high, figures, "", facts)
    if not isinstance(method, Maple) or samples["probability"].nunique() < 2:
        return None
    try:
        found, refused = find_groups(torch.tensor(samples["probability"].to_numpy())), ""
    except OneHumpError as error:
        found, refused = error.found, str(error)
    return _section(samples, "probability", found.high.numpy(), found.figures(), refused, facts)


def _section(
    samples: pandas.DataFrame,
    column: str,
    high: Any,
    figures: Mapping[str, float],
    refused: str,
    facts: Mapping[str, tuple[str, Mapping[bool, str]]],
) -> dict[str, Any]:
    """Return what the template shows of a cut of the keep-probabilities in `column`."""
    return {
        "refused": refused,
        "cut": figures["cut"],
        "figures": figures,
        "high": high.tolist(),
        "plot": _histogram(samples[column].tolist(), figures["cut"], figures["two_means_cut"]),
        "lines": [] if refused else _lines(samples, high, facts),
    }


def _lines(
    samples: pandas.DataFrame, high: Any, facts: Mapping[str, tuple[str, Mapping[bool, str]]]
) -> list[dict[str, Any]]:
    """Return, for each value of each column, how it lines up with the high group; the closest first."""
    lines = []
    for column in samples.columns.drop(list(_SKIPPED), errors="ignore"):
        values = samples[column]
        if not 1 < values.nunique() <= _MOST:
            continue
        names = facts[column][1] if column in facts else {}
        for value in sorted(values.unique().tolist()):
            member = (values == value).to_numpy()
            both = int((member & high).sum())
            lines.append(
                {
                    "name": names.get(value, f"{column} {value}"),
                    "count": int(member.sum()),
                    "of_high": both / max(1, int(high.sum())),
                    "of_low": int((member & ~high).sum()) / max(1, int((~high).sum())),
                    "in_high": both / int(member.sum()),
                }
            )
    return sorted(lines, key=lambda line: line["of_low"] - line["of_high"])


def _histogram(probabilities: Sequence[float], cut: float, middle: float) -> str:
    """Draw the keep-probabilities, the valley's cut solid and the two-means cut dotted."""
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(9.2, 2.8))
        axes = figure.subplots()
        axes.hist(probabilities, bins=_BINS, range=(0.0, 1.0), color=plots.COLOURS[0], alpha=0.6)
        axes.axvline(cut, color=plots.COLOURS[1], label=f"deepest valley, {cut:.2f}")
        axes.axvline(middle, color=plots.COLOURS[2], linestyle=":", label=f"two-means, {middle:.2f}")
        axes.set(xlabel="keep-probability", ylabel="samples", xlim=(0, 1))
        # (matplotlib's "best" place warns where the look for it takes a second.)
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
        return plots.svg(figure)
