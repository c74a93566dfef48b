"""The HTML report of one or several runs: one file, nothing loaded from elsewhere, every string escaped."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steelyard._support._files import write_text
from steelyard._support._plain import plain
from steelyard.experiments.compare.errors import ERRORS, errors_table
from steelyard.experiments.compare.plot_files import test_bars, test_curves
from steelyard.experiments.compare.published import beside
from steelyard.experiments.compare.rows import BEST_ON_TEST, BRIEF, GROUP_METRICS, Row, compare, footnotes
from steelyard.experiments.compare.run_groups import group_runs, labels, short
from steelyard.experiments.compare.tables import scores_table
from steelyard.experiments.data import called
from steelyard.experiments.report.learned import learned, svg_source
from steelyard.experiments.report.templating import template_named
from steelyard.experiments.runs.run import Run

__all__ = ["render", "write_report"]


def write_report(runs: Sequence[Run], path: Path, data_root: Path | None = None) -> None:
    """Write the page for `runs` (at least one) to `path`; see `render`."""
    write_text(path, render(runs, data_root))


def render(runs: Sequence[Run], data_root: Path | None = None) -> str:
    """Return the page: for each data set its table and curves, and for runs that learned weights what these became.

    Args:
        runs: the runs, in any order; seeds of one recipe are averaged.
        data_root: where data sets lie that are not installed; without the data the gallery is left out.
    """
    template = template_named("report.html.j2")
    names = list(dict.fromkeys(called(run.recipe.data) for run in runs))
    sections = [_section([run for run in runs if called(run.recipe.data) == name], data_root) for name in names]
    return template.render(title=" and ".join(names), sections=sections, environment=runs[0].environment)


def _section(runs: list[Run], data_root: Path | None) -> dict[str, Any]:
    """Return what the template shows of one data set."""
    groups = group_runs(runs)
    full = labels(groups)
    names = short(full, called(runs[0].recipe.data))
    rows = compare(runs)
    others = beside(rows)
    curves = test_curves(runs)
    errors = errors_table(rows) if rows[0].errors else None
    return {
        "errors": errors,
        "errors_note": ERRORS,
        "scores": scores_table(rows),
        "name": called(runs[0].recipe.data),
        "data_notes": list(dict.fromkeys(note for run in runs for note in run.environment.get("notes", ()))),
        "story": runs[0].recipe.data.story,
        "about": inspect.getdoc(type(runs[0].recipe.data)),
        "seeds": sorted({len(group) for group in groups}),
        "table": [
            {
                **_line([row for row in rows if row.label == label], group, name),
                "reported": [others.of(label, metric) for metric in others.metrics],
            }
            for label, name, group in zip(full, names, groups, strict=True)
        ],
        "selections": _selections(groups, names),
        "group_columns": [
            (metric, BRIEF[metric]) for metric in GROUP_METRICS if any(metric in row.metrics for row in rows)
        ],
        "reported": [BRIEF[metric] for metric in others.metrics],
        "notes": footnotes(rows),
        "sources": others.notes,
        "bars": None if errors else svg_source(test_bars(runs)),
        "curves": None if curves is None else svg_source(curves),
        "learned": [
            learned(group, name, data_root)
            for name, group in zip(names, groups, strict=True)
            if group[0].samples is not None
        ],
        "recipes": [
            {"name": label, "fields": plain(group[0].recipe)} for label, group in zip(full, groups, strict=True)
        ],
        "commands": list(dict.fromkeys(row.command for row in rows)),
    }


def _selections(groups: list[list[Run]], names: list[str]) -> dict[str, str]:
    """Return each selection criterion in use, and the names of the recipes that use it (none where all do)."""
    used: dict[str, list[str]] = {}
    for name, group in zip(names, groups, strict=True):
        used.setdefault(group[0].recipe.selection, []).append(name)
    return {selection: ", ".join(them) if len(used) > 1 else "" for selection, them in used.items()}


def _line(rows: list[Row], group: list[Run], name: str) -> dict[str, Any]:
    """Return one group's line of the table: its three selections side by side, in per cent."""
    by = {row.selection: row for row in rows}
    recipe = group[0].recipe
    chosen = by.get(recipe.selection, by["last"])
    return {
        "name": name,
        "marks": by["last"].marks,
        "oracle": recipe.data.grayscale,
        "seeds": len(group),
        "seconds": sum(run.environment["seconds"] for run in group) / len(group),
        "selection": recipe.selection,
        "last": by["last"],
        "selected": chosen,
        "best": by[BEST_ON_TEST],
    }
