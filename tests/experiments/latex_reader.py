"""A reader of the LaTeX that our tables use: what TeX would print of it. Anything else is an error."""

from __future__ import annotations

WORDS = {
    "textbackslash": "\\",
    "textasciicircum": "^",
    "textasciitilde": "~",
    "textless": "<",
    "textgreater": ">",
    "textbar": "|",
    "textasciigrave": "`",
    "textquotesingle": "'",
    "dag": "†",
    "ddag": "‡",
    "pm": "±",
    "times": "×",
}


def read_row(text: str) -> tuple[list[str], str]:
    r"""Return the cells of the first row in `text` as printed, and what follows its ``\\``.

    Raises:
        ValueError: a special character that TeX would not print, a command that is not known, braces that do not
            match, or a ``\\`` that would take what follows it for its argument.
    """
    cells, depth, mathematics, at = [""], 0, False, 0
    while at < len(text):
        letter, ahead = text[at], text[at + 1 : at + 2]
        at += 1
        if letter == "\\" and ahead == "\\":
            if depth or mathematics:
                raise ValueError("a row ends within a group")
            rest = text[at + 1 :]
            if rest.lstrip()[:1] in ("[", "*"):
                raise ValueError(f"the row's end takes {rest.lstrip()[:5]!r} as its argument")
            return [cell.strip() for cell in cells], rest
        if letter == "\\" and ahead.isascii() and ahead.isalpha():
            end = at
            while end < len(text) and text[end].isascii() and text[end].isalpha():
                end += 1
            word = text[at:end]
            if mathematics != (word in ("pm", "times")):
                raise ValueError(f"\\{word} in the wrong mode")
            cells[-1] += WORDS[word]
            while end < len(text) and text[end] == " ":  # TeX skips them
                end += 1
            at = end
        elif letter == "\\":
            if not ahead or ahead not in "{}$&#%_":
                raise ValueError(f"unknown command \\{ahead}")
            cells[-1] += ahead
            at += 1
        elif letter in "{}":
            depth += 1 if letter == "{" else -1
            if depth < 0:
                raise ValueError("a brace closes nothing")
        elif letter == "$":
            mathematics = not mathematics
        elif letter == "&":
            cells.append("")
        elif letter in '#%_^~<>|`"' or (letter == "-" and ahead == "-"):
            raise ValueError(f"{letter!r} is not printed as it stands")
        else:
            cells[-1] += letter
    raise ValueError("a row without an end")


def rows_of(text: str) -> list[list[str]]:
    """The cells of each row of a table; the rules between them are checked for their place."""
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    rows = []
    while body.strip():
        row, body = read_row(body.strip().removeprefix(r"\midrule"))
        rows.append(row)
    return rows
