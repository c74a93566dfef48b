"""Tables in LaTeX (booktabs); every string is escaped."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

__all__ = ["escape", "table"]

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    '"': "''",  # a straight double quote needs a font encoding that is not LaTeX's default
    "[": "{[}",  # at the start of a row it would be the argument of the \\ before it
    "]": "{]}",
    "*": "{*}",  # likewise
    "±": r"$\pm$",
    "×": r"$\times$",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
}


def escape(text: str) -> str:
    r"""Return `text` as LaTeX prints it letter by letter; white space and control characters become single spaces.

    Example:
        >>> escape("a_b & 50 %")
        'a\\_b \\& 50 \\%'
    """
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    words = "".join(_SPECIAL.get(letter, letter) for letter in " ".join(printable.split()))
    return re.sub("-(?=-)", "-{}", words)  # two in a row would be a dash


def table(
    head: Sequence[str],
    lines: Sequence[Sequence[str]],
    notes: Sequence[str] = (),
    left: int = 1,
    rules: Collection[int] = (),
) -> str:
    r"""Return a tabular with a paragraph for each note below it, to be read in with ``\input``.

    Args:
        head: the columns' names.
        lines: the cells, plain text.
        notes: plain text.
        left: how many of the first columns are aligned left; the others are aligned right.
        rules: numbers of the lines that have a rule above them.
    """
    rows = [" & ".join(map(escape, line)) + r" \\" for line in (head, *lines)]
    body = [part for number, row in enumerate(rows[1:]) for part in ([r"\midrule"] * (number in rules) + [row])]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}, and in an old LaTeX \usepackage[utf8]{inputenc} and \usepackage{textcomp}",
            rf"\begin{{tabular}}{{{'l' * left}{'r' * (len(head) - left)}}}",
            r"\toprule",
            rows[0],
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par\smallskip{{\footnotesize {escape(note)}\par}}" for note in notes),
            "",
        ]
    )
