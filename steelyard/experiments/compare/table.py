"""One table, and how each place shows it: Markdown, CSV, LaTeX, the terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import rich.table
from rich import box
from rich.markup import escape

from steelyard.experiments.compare import latex
from steelyard.experiments.compare.spreadsheet import table_text

__all__ = ["Table"]


@dataclass(frozen=True)
class Table:
    """Cells of text below a head, and notes below them.

    Attributes:
        head: the columns' names.
        lines: the cells, plain text; as many in each line as there are columns.
        notes: plain text, a paragraph each.

    Raises:
        ValueError: a line with too few cells, or too many.

    Example:
        >>> print(Table(["method", "test"], [["erm", "47.0"]]).markdown(), end="")
        | method | test |
        | --- | --- |
        | erm | 47.0 |
    """

    head: Sequence[str]
    lines: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        for number, line in enumerate(self.lines):
            if len(line) != len(self.head):
                raise ValueError(f"line {number} has {len(line)} cells, the head {len(self.head)}; give as many")

    def markdown(self) -> str:
        """Return it in Markdown; a bar in a cell is escaped."""
        rows = [self.head, ["---"] * len(self.head), *self.lines]
        text = "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)
        return text + "".join(f"\n{note}\n" for note in self.notes)

    def csv(self) -> str:
        """Return it as CSV without the notes; no cell is taken for a formula."""
        return table_text(self.head, self.lines)

    def latex(self, left: int = 1, rules: Collection[int] = ()) -> str:
        """Return it as a LaTeX tabular, `left` columns aligned left, a rule above the lines numbered in `rules`."""
        return latex.table(self.head, self.lines, self.notes, left=left, rules=rules)

    def terminal(self, title: str = "", caption: str = "") -> rich.table.Table:
        """Return it for a rich console, without the notes; no cell is wrapped, all but the first align right."""
        table = rich.table.Table(
            title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), caption=caption
        )
        for number, name in enumerate(self.head):
            table.add_column(escape(name), justify="right" if number else "left", no_wrap=True)
        for line in self.lines:
            table.add_row(*map(escape, line))
        return table
