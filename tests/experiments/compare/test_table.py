"""One table in four renderings, and the rows of a summary."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest
from rich.console import Console

from steelyard.experiments.compare.summary import summary_row
from steelyard.experiments.compare.table import Table
from tests.experiments.latex_reader import rows_of

TABLE = Table(["method", "test [%]"], [["a|b", "47.0 ± 1.0"], ["=cmd()", ""]], ["two seeds"])


def test_markdown_escapes_bars_and_ends_with_the_notes() -> None:
    head, rule, first, second, blank, note = TABLE.markdown().splitlines()
    assert (head, rule, first) == ("| method | test [%] |", "| --- | --- |", r"| a\|b | 47.0 ± 1.0 |")
    assert second == "| =cmd() |  |"
    assert (blank, note) == ("", "two seeds")


def test_csv_has_all_cells_and_no_formula() -> None:
    rows = list(csv.reader(io.StringIO(TABLE.csv())))
    assert rows[:2] == [["method", "test [%]"], ["a|b", "47.0 ± 1.0"]]
    assert rows[2][0] == "'=cmd()"
    assert len(rows) == 3


def test_latex_has_all_cells_and_the_notes() -> None:
    text = TABLE.latex(rules=[1])
    assert rows_of(text) == [[*TABLE.head], *(list(line) for line in TABLE.lines)]
    assert text.count(r"\midrule") == 2
    assert "two seeds" in text
    assert r"\begin{tabular}{lr}" in text


def test_the_terminal_shows_markup_as_it_stands_and_cuts_nothing() -> None:
    file = io.StringIO()
    Console(file=file, width=80).print(TABLE.terminal("A title", "below"))
    lines = file.getvalue().splitlines()
    assert lines[0].strip() == "A title"
    assert lines[-1].strip() == "below"
    assert ["a|b", "47.0", "±", "1.0"] in [line.split() for line in lines]
    assert any("test [%]" in line for line in lines)


def test_a_line_must_fit_the_head() -> None:
    with pytest.raises(ValueError, match="line 1 has 1 cells, the head 2"):
        Table(["a", "b"], [["1", "2"], ["1"]])


def test_a_summary_row_is_json_and_has_no_nan() -> None:
    named = {"recipe": "r", "dataset": "d", "method": "m", "metric": "x", "selection": "last", "command": "c"}
    row = summary_row(**named, mean=1 / 3, std=math.nan, seeds=range(2))
    assert json.loads(json.dumps(row, allow_nan=False)) == {**named, "mean": 0.333333, "std": None, "seeds": [0, 1]}
    assert list(row) == [
        *("recipe", "dataset", "method", "metric", "selection", "mean", "std", "seeds", "command"),
    ]
    assert summary_row(**named, mean=None, std=0.0, seeds=())["mean"] is None
