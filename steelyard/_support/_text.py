"""Text that other people wrote: without what steers a terminal or breaks a page, and cut short in messages."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterable
from typing import Any

__all__ = ["few", "parse_json", "printable", "shown"]

_MOST = 5  # of what an error lists
_DEEPEST = 50  # nesting of JSON; our own files have less than ten

# Control characters, halves of surrogate pairs, signs that turn the direction of writing round, and what XML forbids.
_SPACES = re.compile("[\t\n\v\f\r\x85\u2028\u2029]")
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff\ud800-\udfff]"
)


def printable(text: str) -> str:
    """Return `text` on one line, fit for a terminal, a table and a page: other characters become blanks or U+FFFD.

    Example:
        >>> printable("red\\x1b[31m name\\n")
        'red�[31m name '
    """
    return _UNPRINTABLE.sub("\ufffd", _SPACES.sub(" ", text))


def parse_json(text: str | bytes) -> Any:
    """Return what JSON from elsewhere holds, every string and name in it `printable`.

    Raises:
        ValueError: it is not JSON, not UTF-8, or nested deeper than anything of ours is.
    """
    try:
        return _printable(json.loads(text), _DEEPEST)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _printable(value: Any, depth: int) -> Any:
    if not depth:
        raise ValueError(f"it is nested deeper than {_DEEPEST} levels")
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_printable(item, depth - 1) for item in value]
    if isinstance(value, dict):
        return {printable(key): _printable(item, depth - 1) for key, item in value.items()}
    return value


def few(values: Iterable[object]) -> str:
    """Return `values` for a message: five at most, and how many there are.

    Example:
        >>> few(["a", "b"]), few(range(1_000_000))
        ('a, b', '0, 1, 2, 3, 4, ... (1000000 in all)')
    """
    known = list(values)
    rest = f", ... ({len(known)} in all)" if len(known) > _MOST else ""
    return ", ".join(_short(str(value)) for value in known[:_MOST]) + rest


def shown(value: object) -> str:
    """Return the `repr` of a value that somebody gave, cut short in the middle of what is long.

    Example:
        >>> shown([0, 1, 2, 3, 4, 5, 6]), shown("name")
        ('[0, 1, 2, 3, 4, ...]', "'name'")
    """
    try:
        return _BRIEF.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"a very large {type(value).__name__}"


def _short(text: str) -> str:
    return text if len(text) <= _BRIEF.maxstring else f"{text[: _BRIEF.maxstring]}..."


_BRIEF = reprlib.Repr()
_BRIEF.maxlist = _BRIEF.maxtuple = _BRIEF.maxdict = _BRIEF.maxset = _MOST
_BRIEF.maxstring = _BRIEF.maxother = 120
_BRIEF.maxlevel = 4
