"""A comparison as files: Markdown, CSV, LaTeX and `summary.json`. Accuracies are shares of 1."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from steelyard._support._files import write_text
from steelyard.experiments.compare.published import beside
from steelyard.experiments.compare.rows import Row, footnotes
from steelyard.experiments.compare.spreadsheet import table_text
from steelyard.experiments.compare.summary import summary_row
from steelyard.experiments.compare.table import Table

__all__ = ["FILES", "comma_separated", "markdown", "summary", "tex", "write_comparison"]

FILES = ("comparison.md", "comparison.csv", "comparison.tex", "summary.json")


def write_comparison(rows: Sequence[Row], folder: Path) -> None:
    """Write `FILES` into `folder`."""
    texts = (markdown(rows), comma_separated(rows), tex(rows), json.dumps(summary(rows), indent=2, ensure_ascii=False))
    for name, text in zip(FILES, texts, strict=True):
        write_text(folder / name, text.rstrip("\n") + "\n")


def _table(rows: Sequence[Row]) -> Table:
    names, others = _metric_names(rows), beside(rows)
    lines = tuple(
        (
            f"{row.label} {row.marks}".strip(),
            row.selection,
            *(_shown(row, name) for name in names),
            *(others.cell(number, metric) for metric in others.metrics),
            str(len(row.seeds)),
        )
        for number, row in enumerate(rows)
    )
    reported = (f"as reported: {metric}" for metric in others.metrics)
    return Table(("recipe", "step taken", *names, *reported, "seeds"), lines, (*footnotes(rows), *others.notes))


def _shown(row: Row, name: str) -> str:
    spread = row.metrics.get(name)
    return "" if spread is None else spread.plain() if row.errors else str(spread)


def markdown(rows: Sequence[Row]) -> str:
    """Return a Markdown table, and below it a note for each row of last steps that is marked and for each source."""
    return _table(rows).markdown()


def tex(rows: Sequence[Row]) -> str:
    """Return the same table in LaTeX, to be read in with ``\\input``; a rule divides the groups of runs."""
    first = [number for number, row in enumerate(rows) if number == 0 or row.label != rows[number - 1].label]
    return _table(rows).latex(left=2, rules=first[1:])


def comma_separated(rows: Sequence[Row]) -> str:
    """Return the comparison as CSV, a column for each number; published figures and sources have their own."""
    names, others = _metric_names(rows), beside(rows)
    columns = [f"{_key(name)}_{number}" for name in names for number in ("mean", "std")]
    reported = [f"reported_{_key(name)}_{part}" for name in others.metrics for part in ("mean", "std", "source")]
    facts = ("recipe", "label", "dataset", "method", "selection")
    lines = []
    for row, figures in zip(rows, others.figures, strict=True):
        known = [row.metrics.get(name) for name in names]
        numbers = [number for spread in known for number in (("", "") if spread is None else (spread.mean, spread.std))]
        published: list[object] = []
        for figure in map(figures.get, others.metrics):
            if figure is None:
                published += ["", "", ""]
            else:  # 66.9 / 100 is 0.669 after rounding only
                value, spread = round(figure.value / 100, 6), round(figure.spread / 100, 6)
                published += [value, spread or "", others.notes[others.numbers[figure] - 1].split(" ", 1)[1]]
        steps, seeds = (" ".join(map(str, values)) for values in (row.steps, row.seeds))
        named = (row.recipe, row.label, row.dataset, row.method, row.selection)
        lines.append([*named, *numbers, *published, steps, seeds, row.below_floor, row.diverged, row.command])
    return table_text([*facts, *columns, *reported, "steps", "seeds", "below_floor", "diverged", "command"], lines)


def summary(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Return the rows of a `summary.json` under results/: one for each metric, ours alone."""
    return [
        summary_row(
            recipe=row.recipe,
            dataset=row.dataset,
            method=row.method,
            metric=_key(name),
            selection=row.selection,
            mean=spread.mean,
            std=spread.std,
            seeds=row.seeds,
            command=row.command,
        )
        for row in rows
        for name, spread in row.metrics.items()
    ]


def _metric_names(rows: Sequence[Row]) -> list[str]:
    """Return the accuracies that any of the rows has, in order."""
    return list(dict.fromkeys(name for row in rows for name in row.metrics))


def _key(name: str) -> str:
    return name.replace(" ", "_").replace("-", "_")
