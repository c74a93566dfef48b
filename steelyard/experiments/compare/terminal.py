"""A comparison on the terminal: one line a method, accuracies in per cent."""

from __future__ import annotations

from collections.abc import Sequence

import rich.table
from rich.console import Console
from rich.measure import Measurement

from steelyard.experiments.compare.errors import ERRORS, errors_table
from steelyard.experiments.compare.published import Beside, beside
from steelyard.experiments.compare.rows import BRIEF, GROUP_METRICS, Row, footnotes
from steelyard.experiments.compare.run_groups import short
from steelyard.experiments.compare.table import Table

__all__ = ["show_comparison", "show_whole"]

PLAIN = ("train accuracy", "validation accuracy", "test accuracy")
CAPTION = (
    "train, validation, test: the last step. selected: test at the step that the recipe's criterion prefers on "
    "validation. best: test at the step best on TEST, for comparison with papers that report it."
)
GROUPS = (
    " test is the plain average; adjusted weighs the groups' accuracies by their sizes in training; worst group is the "
    "lowest accuracy of a group."
)
REPORTED = " reported: by others, not measured here."


def show_comparison(console: Console, rows: Sequence[Row]) -> None:
    """Print the table and its notes; on a terminal that is too narrow lines wrap, but no number is cut.

    Regressions have a table of their own, in the units of their targets.
    """
    if numbers := [row for row in rows if row.errors]:
        names = " and ".join(sorted({row.dataset for row in numbers}))
        show_whole(console, errors_table(numbers).terminal(title=f"Errors on {names}", caption=ERRORS))
        rows = [row for row in rows if not row.errors]
        if not rows:
            return
    others = beside(rows)
    table = _table(rows, others)
    show_whole(console, table)
    for note in footnotes(rows):
        console.print(note, markup=False, highlight=False, style="yellow")
    for note in others.notes:
        console.print(note, markup=False, highlight=False)


def show_whole(console: Console, table: rich.table.Table) -> None:
    """Print a table; on a terminal that is too narrow its lines wrap, and nothing is cut."""
    natural = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    (console if natural <= console.width else Console(file=console.file, width=natural)).print(table)


def _table(rows: Sequence[Row], others: Beside) -> rich.table.Table:
    """Return one line a group of runs, the selections side by side."""
    datasets = sorted({row.dataset for row in rows})
    spread = ", mean ± standard deviation over seeds" if any(len(row.seeds) > 1 for row in rows) else ""
    grouped = [metric for metric in GROUP_METRICS if any(metric in row.metrics for row in rows)]
    last_columns = (BRIEF[metric] for metric in (*PLAIN, *grouped))
    selected_columns = ("selected", *(f"sel. {BRIEF[metric]}" for metric in grouped))
    reported_columns = (f"reported {BRIEF[metric]}" for metric in others.metrics)
    labels = list(dict.fromkeys(row.label for row in rows))
    names = short(labels, datasets[0]) if len(datasets) == 1 else labels  # the title has the rest
    lines = []
    for label, name in zip(labels, names, strict=True):
        last, *selected, best = (row for row in rows if row.label == label)
        chosen = selected[0] if selected else last
        lines.append(
            [
                f"{name} {last.marks}".strip(),
                *(_percent(last, metric) for metric in (*PLAIN, *grouped)),
                *(_percent(chosen, metric) for metric in ("test accuracy", *grouped)),
                best.test.percent(),
                *(others.of(label, metric) for metric in others.metrics),
                str(len(last.seeds)),
            ]
        )
    return Table(["recipe", *last_columns, *selected_columns, "best", *reported_columns, "seeds"], lines).terminal(
        title=f"Accuracy on {' and '.join(datasets)} (%){spread}",
        caption=CAPTION + GROUPS * bool(grouped) + REPORTED * bool(others.metrics),
    )


def _percent(row: Row, metric: str) -> str:
    """Return one of the row's accuracies in per cent; empty where its data set has no groups."""
    return row.metrics[metric].percent() if metric in row.metrics else ""
