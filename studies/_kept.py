"""Tables of a part do not replace tables of the whole: a fresh checkout has results, and no runs."""

from __future__ import annotations

from pathlib import Path

from steelyard._support._errors import UserError
from steelyard._support._text import parse_json

__all__ = ["check_no_fewer"]


def check_no_fewer(file: Path, rows: int) -> None:
    """Raise unless what is about to be written to `file` has as many rows as what lies there, or more.

    Args:
        file: a JSON list, or a CSV table with a head; it need not be there.
        rows: how many are about to be written.

    Raises:
        UserError: it has more.
    """
    if not file.exists():
        return
    text = file.read_text(encoding="utf-8")
    there = len(parse_json(text)) if file.suffix == ".json" else len(text.splitlines()) - 1
    if there > rows:
        raise UserError(
            f"{file} has {there} rows and this run {rows}: give another folder by --out, or name all that it "
            "shall have (what is carried out already is read)"
        )
