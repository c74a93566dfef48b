"""The tables: a line for each row, figures over data seeds, published ones beside them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from steelyard._support._files import write_text
from steelyard.experiments.compare.published import published
from steelyard.experiments.compare.table import Table
from steelyard.experiments.errors import RunError
from studies._kept import check_no_fewer
from studies.photographs.rows import ROWS, Known, rows_of
from studies.photographs.search import CHOSEN_BY
from studies.photographs.sets import Source

__all__ = ["figures", "overview", "report", "shuffled_table", "table"]

_WORST, _CLASS = CHOSEN_BY
_KNOWN: Mapping[str, tuple[tuple[Known, ...], str]] = {
    "training": (("training", "validation", "nowhere"), _WORST),
    "validation": (("validation", "nowhere"), _WORST),
    "nowhere": (("nowhere",), _CLASS),
}
"""Where groups are known -> the rows that may then be used, by what they read, and the criterion."""

_COMMAND = "python -m studies.photographs table"
_BESIDE = {"waterbirds": "waterbirds", "hard": "waterbirds", "images": "waterbirds", "celeba": "celeba"}
"""Whose published figures stand beside a set's."""
_TITLES = {"waterbirds": "Waterbirds", "celeba": "CelebA"}


def report(
    out: Path,
    sources: Sequence[Source],
    found: Sequence[Sequence[Mapping[str, Any]]],
) -> None:
    """Write the tables and `summary.json` to `out`.

    Args:
        out: the folder.
        sources: what rows were trained on.
        found: for each source the rows' figures, as `table.read` returns them.

    Raises:
        RunError: there is no row. UserError: `out` has tables of more rows.
    """
    if not any(found):
        raise RunError("no row is carried out; `python -m studies.photographs table` does so")
    for one_source, rows in zip(sources, found, strict=True):
        check_no_fewer(out / f"{one_source.case}_rows.json", len(rows))
    summary: list[dict[str, Any]] = []
    for one_source, rows in zip(sources, found, strict=True):
        case = one_source.case
        notes = [row["refused"] for row in rows if "refused" in row]
        for known in _KNOWN:
            one = table(rows, known, one_source.sizes, _BESIDE.get(one_source.name, ""))
            if one.lines:
                write_text(out / f"{case}_{known}.md", Table(one.head, one.lines, (*one.notes, *notes)).markdown())
                write_text(out / f"{case}_{known}.csv", one.csv())
        if (dealt := shuffled_table(rows)).lines:
            write_text(out / f"{case}_shuffled.md", dealt.markdown())
        write_text(out / f"{case}_rows.json", json.dumps(rows) + "\n")
        summary += _summary(rows, one_source)
    if len(sources) > 1:
        write_text(out / "overview.md", overview(sources, found).markdown())
    write_text(out / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")


def table(rows: Sequence[Mapping[str, Any]], known: str, sizes: Sequence[int] | None, beside: str = "") -> Table:
    """Return the table of the rows that can be used where groups are known as `known` says, best first on validation.

    Args:
        rows: as `search.carry_out` returns them.
        known: "training", "validation" or "nowhere".
        sizes: of the groups in training, for the adjusted average; see `sets.Source`.
        beside: the data set whose published figures stand beside; "" for none.
    """
    readers, criterion = _KNOWN[known]
    usable = [row for row in rows if row["known"] in readers and criterion in row["choices"]]
    lines = []
    for row in sorted(usable, key=lambda one: -one["choices"][criterion]["score"]):
        runs = [run for run in row["choices"][criterion]["runs"] if "failed" not in run]
        own = [figures(run, sizes) for run in runs]
        cells = [_spread([one[name] for one in own]) for name in _FIGURES]
        seconds = statistics.fmean(run["seconds"] for run in runs) if runs else float("nan")
        cost = [f"{seconds:.1f}", f"{row['search seconds']:.0f}"]
        lines.append([row["row"], row["known"], *cells, *cost, *(_published(row["row"], beside) if beside else ())])
    published_head = (f"{_TITLES[beside]}: worst group", "average") if beside else ()
    head = ("method", "reads groups", *_FIGURES.values(), "s a run", "s of search", *published_head)
    return Table(head, lines, _notes(usable, criterion, beside))


def _notes(rows: Sequence[Mapping[str, Any]], criterion: str, beside: str) -> list[str]:
    """Return what has to be said of a table: how its settings were chosen, what failed, who published."""
    if not rows:
        return []
    seeds = [run["seed"] for run in rows[0]["choices"][criterion]["runs"]]
    said = f"mean ± standard deviation over the data seeds {', '.join(map(str, seeds))}"
    trials = max(row["trials"] for row in rows)
    settings = f"the best of {trials} on another data seed, and the step of each run, by {criterion}"
    if trials == 1:
        settings = f"the recipes', which nobody tuned on these data; the step of each run by {criterion}"
    notes = [
        f"Per cent, {said if len(seeds) > 1 else f'of the data seed {seeds[0]} alone'}. Settings: {settings}; the "
        "lines stand in the order of that score. Seconds of processor time."
    ]
    for row in rows:
        lost = [run["seed"] for run in row["choices"][criterion]["runs"] if "failed" in run]
        if row["failed"] or lost:
            said = f"{row['row']}: {row['failed']} of {row['trials']} settings failed"
            notes.append(said + (f", and the chosen one on {', '.join(map(str, lost))}." if lost else "."))
    if not beside:
        return notes
    methods = {one.published for one in ROWS if one.title in {row["row"] for row in rows}} - {""}
    sources: dict[str, list[str]] = {}
    for figure in published().figures:
        if figure.dataset == beside and figure.method in methods:
            sources.setdefault(published().note(figure), []).append(figure.method)
    return [*notes, *(f"{_TITLES[beside]}, {', '.join(dict.fromkeys(own))}: {note}" for note, own in sources.items())]


def overview(sources: Sequence[Source], found: Sequence[Sequence[Mapping[str, Any]]]) -> Table:
    """Return one table of all sources, a line for each row of the first, chosen by the worst group of validation.

    Args:
        sources: what rows were trained on. found: for each the rows' figures.
    """
    names = {"worst": "worst group", "adjusted": "average", "validation worst": "on validation"}
    head = [f"{source.case}: {said}" if name == "worst" else said for source in sources for name, said in names.items()]
    lines = []
    for row in sorted(_tuned(found[0]), key=lambda one: -one["choices"][_WORST]["score"]):
        cells = []
        for source, rows in zip(sources, found, strict=True):
            same = [one["choices"][_WORST]["runs"] for one in _tuned(rows) if one["row"] == row["row"]]
            own = [figures(run, source.sizes) for runs in same for run in runs if "failed" not in run]
            cells += [_spread([one[name] for one in own]) if same else "" for name in names]
        lines.append([row["row"], row["known"], *cells])
    return Table(["method", "reads groups", *head], lines)


_FIGURES = {
    "worst": "test, worst group",
    "adjusted": "average, training's shares",
    "average": "average, plain",
    "balanced": "mean of groups",
    "validation worst": "validation, worst group",
    "calibration": "calibration error",
}


def figures(run: Mapping[str, Any], sizes: Sequence[int] | None) -> dict[str, float]:
    """Return a run's figures, in per cent; the adjusted average weighs the test groups by `sizes` where given."""
    test = _accuracies(run["test"])
    adjusted = 100 * run["test"]["adjusted"] if sizes is None else float(np.average(test, weights=sizes))
    return {
        "worst": min(test),
        "adjusted": adjusted,
        "average": 100 * run["test"]["accuracy"],
        "balanced": statistics.fmean(test),
        "validation worst": min(_accuracies(run["validation"])),
        "calibration": 100 * run["test"]["calibration error"],
    }


def shuffled_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return what MAPLE's weights are worth when each group's are dealt out again among its samples."""
    lines = []
    for row in _tuned(rows):
        runs = [run for run in row["choices"][_WORST]["runs"] if "shuffled" in run]
        if runs:
            worst = [[min(_accuracies(one["test"])) for one in own] for own in (runs, [r["shuffled"] for r in runs])]
            lines.append([row["row"], *map(_spread, worst)])
    return Table(("method", "test, worst group", "with weights shuffled within groups"), lines)


def _tuned(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["choices"]]


def _accuracies(split: Mapping[str, Any]) -> list[float]:
    return [100 * right / count for right, count in zip(split["right"], split["count"], strict=True) if count]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "failed"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def _published(title: str, beside: str) -> tuple[str, str]:
    method = next((row.published for row in ROWS if row.title == title), "")
    found = {one.metric: one for one in published().figures if (one.dataset, one.method) == (beside, method)}
    metrics = ("test worst-group accuracy", "test adjusted accuracy")
    worst, average = (found[one].percent() if one in found else "" for one in metrics)
    return worst, average


def _summary(rows: Sequence[Mapping[str, Any]], source: Source) -> list[dict[str, Any]]:
    """Return mean and sample deviation of the worst group and the average, as every results folder has them."""
    summary = []
    recipes = {row.title: row.shown for row in rows_of(source.name)}
    command = _COMMAND + ("" if source.name == "waterbirds" else f" --name {source.name}")
    for row in rows:
        for selection, choice in row["choices"].items():
            runs = [run for run in choice["runs"] if "failed" not in run]
            by = {"test worst-group accuracy": lambda run: min(_accuracies(run["test"])) / 100}
            by["test accuracy"] = lambda run: run["test"]["accuracy"]
            for metric, of in by.items():
                values = [of(run) for run in runs]
                summary.append(
                    {
                        "recipe": recipes.get(row["row"], ""),
                        "dataset": source.case,
                        "method": row["row"],
                        "metric": metric,
                        "selection": selection,
                        "mean": statistics.fmean(values) if values else None,
                        "std": statistics.stdev(values) if len(values) > 1 else None,
                        "seeds": [run["seed"] for run in runs],
                        "command": command,
                    }
                )
    return summary
