"""Tables as CSV that spreadsheets open: no cell of text is taken for a formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["cell", "table_text"]

_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # the last four: the first four as Japanese keyboards write them


def cell(value: Any) -> Any:
    """Return what to write for `value`: text that a spreadsheet would compute gets an apostrophe, numbers stay.

    Example:
        >>> cell("=1+1"), cell("-0.5"), cell("- a"), cell(-0.5)
        ("'=1+1", '-0.5', "'- a", -0.5)
    """
    if not isinstance(value, str) or not value.startswith(_FORMULA) or _is_number(value):
        return value
    return f"'{value}"


def table_text(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(cell, head))
    writer.writerows(map(cell, row) for row in rows)
    return text.getvalue()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.isascii() and "_" not in text and text == text.strip()
