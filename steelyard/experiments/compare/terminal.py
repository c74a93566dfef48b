"""A comparison on the terminal: one line a method, accuracies in per cent."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from steelyard.experiments.compare.published import Beside, beside
from steelyard.experiments.compare.rows import BRIEF, GROUP_METRICS, Row, footnotes
from steelyard.experiments.compare.run_groups import short

__all__ = ["show_comparison"]

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
    """Print the table and its notes; on a terminal that is too narrow lines wrap, but no number is cut."""
    others = beside(rows)
    table = _table(rows, others)
    natural = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    (console if natural <= console.width else Console(file=console.file, width=natural)).print(table)
    for note in footnotes(rows):
        console.print(note, markup=False, highlight=False, style="yellow")
    for note in others.notes:
        console.print(note, markup=False, highlight=False)


def _table(rows: Sequence[Row], others: Beside) -> Table:
    """Return one line a group of runs, the selections side by side."""
    datasets = sorted({row.dataset for row in rows})
    spread = ", mean ± standard deviation over seeds" if any(len(row.seeds) > 1 for row in rows) else ""
    grouped = [metric for metric in GROUP_METRICS if any(metric in row.metrics for row in rows)]
    table = Table(
        title=f"Accuracy on {' and '.join(datasets)} (%){spread}",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption=CAPTION + GROUPS * bool(grouped) + REPORTED * bool(others.metrics),
    )
    table.add_column("recipe", no_wrap=True)
    last_columns = (BRIEF[metric] for metric in (*PLAIN, *grouped))
    selected_columns = ("selected", *(f"sel. {BRIEF[metric]}" for metric in grouped))
    reported_columns = (f"reported {BRIEF[metric]}" for metric in others.metrics)
    for column in (*last_columns, *selected_columns, "best", *reported_columns, "seeds"):
        table.add_column(column, justify="right", no_wrap=True)
    labels = list(dict.fromkeys(row.label for row in rows))
    names = short(labels, datasets[0]) if len(datasets) == 1 else labels  # the title has the rest
    for label, name in zip(labels, names, strict=True):
        last, *selected, best = (row for row in rows if row.label == label)
        chosen = selected[0] if selected else last
        table.add_row(
            escape(f"{name} {last.marks}".strip()),
            *(_percent(last, metric) for metric in (*PLAIN, *grouped)),
            *(_percent(chosen, metric) for metric in ("test accuracy", *grouped)),
            best.test.percent(),
            *(escape(others.of(label, metric)) for metric in others.metrics),
            str(len(last.seeds)),
        )
    return table


def _percent(row: Row, metric: str) -> str:
    """Return one of the row's accuracies in per cent; empty where its data set has no groups."""
    return row.metrics[metric].percent() if metric in row.metrics else ""
