"""A comparison as files: Markdown, CSV, LaTeX and `summary.json`. Accuracies are shares of 1."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from steelyard._support._files import write_text
from steelyard.experiments.compare.published import beside
from steelyard.experiments.compare.rows import BEST_ON_TEST, Row, footnotes
from steelyard.experiments.compare.spreadsheet import table_text
from steelyard.experiments.compare.summary import summary_row
from steelyard.experiments.compare.table import Table

__all__ = ["FILES", "comma_separated", "markdown", "scores_table", "summary", "tex", "write_comparison"]

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
    further = scores_table(rows)
    return _table(rows).markdown() + ("" if further is None else f"\n{further.markdown()}")


def scores_table(rows: Sequence[Row]) -> Table | None:
    """Return the figures of ranking and balance, and the worst group's accuracy, with intervals over samples.

    None where no row has such figures: regressions, and runs of earlier versions.
    """
    shown = [row for row in rows if row.selection != BEST_ON_TEST]
    names = list(dict.fromkeys(name for row in shown for name in row.scores))
    if not names:
        return None
    grouped = ["test worst-group accuracy"] * any("test worst-group accuracy" in row.metrics for row in shown)
    lines = [
        (
            f"{row.label} {row.marks}".strip(),
            row.selection,
            *(_with_interval(row, name) for name in (*grouped, *names)),
            str(len(row.seeds)),
        )
        for row in shown
    ]
    brief = (name.removeprefix("test ") for name in (*grouped, *names))
    return Table(("test figures", "step taken", *brief, "seeds"), lines, (_INTERVALS,))


def _with_interval(row: Row, name: str) -> str:
    spread = {**row.metrics, **row.scores}.get(name)
    if spread is None:
        return ""
    if name not in row.intervals:
        return str(spread)
    low, high = row.intervals[name]
    return f"{spread} [{low:.3f}, {high:.3f}]"


_INTERVALS = (
    "Brackets: a 95 % interval over the test samples of one run, its ends averaged over seeds (accuracies: Wilson; "
    "AUROC: DeLong; AUPRC and balanced accuracy: binomial logits). F1 is the mean over classes; AUPRC is of class "
    "1. worst-environment: the lowest of an environment, in data with groups of an attribute; worst-group calibration "
    "error: the highest of a group."
)


def tex(rows: Sequence[Row]) -> str:
    """Return the same table in LaTeX, to be read in with ``\\input``; a rule divides the groups of runs."""
    first = [number for number, row in enumerate(rows) if number == 0 or row.label != rows[number - 1].label]
    return _table(rows).latex(left=2, rules=first[1:])


def comma_separated(rows: Sequence[Row]) -> str:
    """Return the comparison as CSV, a column for each number; published figures and sources have their own."""
    names, others = [*_metric_names(rows), *dict.fromkeys(name for row in rows for name in row.scores)], beside(rows)
    columns = [f"{_key(name)}_{number}" for name in names for number in ("mean", "std")]
    reported = [f"reported_{_key(name)}_{part}" for name in others.metrics for part in ("mean", "std", "source")]
    facts = ("recipe", "label", "dataset", "method", "selection")
    lines = []
    for row, figures in zip(rows, others.figures, strict=True):
        known = [{**row.metrics, **row.scores}.get(name) for name in names]
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
            interval=row.intervals.get(name),
        )
        for row in rows
        for name, spread in (*row.metrics.items(), *row.scores.items())
    ]


def _metric_names(rows: Sequence[Row]) -> list[str]:
    """Return the accuracies that any of the rows has, in order."""
    return list(dict.fromkeys(name for row in rows for name in row.metrics))


def _key(name: str) -> str:
    return name.replace(" ", "_").replace("-", "_")
