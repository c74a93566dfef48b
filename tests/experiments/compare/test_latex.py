"""LaTeX tables: read back by a small reader, they print what went in, whatever the strings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.experiments.compare.latex import escape, table
from tests.experiments.latex_reader import read_row

HOSTILE = [
    "a_b & c % d # e $ f",
    r"\input{/etc/passwd} ^^5c",
    "[1] first",
    "* starred",
    "--set x=1 --- y",
    "a|b <c> ~d `e` 'f' {g}",
    "±×†‡",
    "line\nbreak\tand\x00nothing",
    "é 中",
]


def printed(text: str) -> str:
    """What of `text` can be printed: white space and control characters are one space, a double quote is two quotes."""
    spaced = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(spaced.split()).replace('"', "''")


def cell(text: str) -> str:
    (only,), rest = read_row(rf"{escape(text)} \\")
    assert rest == ""
    return only


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_strings_are_printed_letter_by_letter(text: str) -> None:
    assert cell(text) == printed(text)


@given(st.text(max_size=30))
def test_any_string_is_printed_letter_by_letter(text: str) -> None:
    assert cell(text) == printed(text)


def rows_of(text: str) -> list[list[str]]:
    """The cells of each row of a table; the rules between them are checked for their place."""
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    rows = []
    while body.strip():
        row, body = read_row(body.strip().removeprefix(r"\midrule"))
        rows.append(row)
    return rows


def test_a_table_reads_back() -> None:
    head = ["recipe", "100 %", "a_b"]
    lines = [[text, "0.5 ± 0.1", ""] for text in HOSTILE]
    text = table(head, lines, ["note & 1"], left=1, rules=[2])
    assert rows_of(text) == [head, *([printed(first), *rest] for first, *rest in lines)]
    assert r"\begin{tabular}{lrr}" in text
    assert text.count(r"\midrule") == 2  # below the head and above the third line
    assert text.splitlines()[-1] == r"\par\smallskip{\footnotesize note \& 1\par}"
    assert text.index(r"\midrule" + "\n" + escape(HOSTILE[2])) > text.index(escape(HOSTILE[1]))


@pytest.mark.parametrize(
    "broken", ["a_b", "a % b", "{a", "a}", "a -- b", "a", r"a \\ [1] \\", r"a \\ * \\", r"\dag$ \\"]
)
def test_the_reader_refuses_what_tex_would_not_print(broken: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        read_row(broken if broken.endswith((r"\\", "a")) else rf"{broken} \\")
