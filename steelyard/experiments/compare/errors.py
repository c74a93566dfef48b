"""Regressions in a comparison: one line a group of runs, errors in the units of the target."""

from __future__ import annotations

from collections.abc import Sequence

from steelyard.experiments.compare.rows import Row
from steelyard.experiments.compare.run_groups import short
from steelyard.experiments.compare.table import Table

__all__ = ["ERRORS", "errors_table"]

ERRORS = (
    "MSE and MAE in the target's own units, at the last step; sel.: at the step that the recipe's criterion prefers on "
    "validation."
)


def errors_table(rows: Sequence[Row]) -> Table:
    """Return errors at the last step, and those on the test split at the step that was selected on validation."""
    metrics = list(dict.fromkeys(name for row in rows for name in row.errors))
    tests = [name for name in metrics if name.startswith("test")]
    labels = list(dict.fromkeys(row.label for row in rows))
    names = short(labels, rows[0].dataset) if len({row.dataset for row in rows}) == 1 else labels
    lines = []
    for label, name in zip(labels, names, strict=True):
        last, *selected, _ = (row for row in rows if row.label == label)
        chosen = selected[0] if selected else last
        cells = [(last, metric) for metric in metrics] + [(chosen, metric) for metric in tests]
        figures = [row.errors[metric].plain() if metric in row.errors else "" for row, metric in cells]
        lines.append([name, *figures, str(len(last.seeds))])
    return Table(["recipe", *metrics, *(f"sel. {metric}" for metric in tests), "seeds"], lines)
