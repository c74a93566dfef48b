"""Text from elsewhere: what steers a terminal, what a spreadsheet computes, what fills a screen."""

from __future__ import annotations

import unicodedata
from xml.etree import ElementTree

import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard._support._text import few, parse_json, printable, shown
from steelyard.bilevel import Batch
from steelyard.experiments.compare.spreadsheet import cell, frame_text, table_text
from steelyard.experiments.errors import DataError
from steelyard.experiments.training.group_labels import counts


@given(st.text())
@settings(deadline=None)
def test_printable_text_is_one_line_without_controls_and_stays_so(text: str) -> None:
    clean = printable(text)
    assert not {unicodedata.category(letter) for letter in clean} & {"Cc", "Cs", "Zl", "Zp"}
    assert len(clean.splitlines()) <= 1
    assert printable(clean) == clean
    ElementTree.fromstring(f"<a>{clean.replace('&', '').replace('<', '').replace(']]>', '')}</a>")


@pytest.mark.parametrize("text", ["plain", "Zürich ± 3", "日本語", "a\u00a0b", "👩\u200d🔬", "αβγ"])
def test_text_of_any_language_stays(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize("letter", ["\x00", "\x07", "\x1b", "\x7f", "\x9b", "\u202e", "\u2066", "\ud800", "\uffff"])
def test_what_steers_a_terminal_is_replaced(letter: str) -> None:
    assert printable(f"a{letter}b") == "a\ufffdb"


def test_json_is_cleaned_throughout_and_bounded() -> None:
    assert parse_json('{"a\\u001b": ["b\\ud800", {"c": "d\\n"}], "n": 1e5}') == {
        "a\ufffd": ["b\ufffd", {"c": "d "}],
        "n": 1e5,
    }
    for text in ("[" * 100_000, "[" * 60 + "]" * 60, '{"a":' * 60 + "1" + "}" * 60, b"\xff", "nothing", "9" * 5000):
        with pytest.raises(ValueError, match=r"."):
            parse_json(text)


def test_messages_name_five_and_say_how_many() -> None:
    assert few([1, 2, 3, 4, 5]) == "1, 2, 3, 4, 5"
    assert few(range(10**6)) == "0, 1, 2, 3, 4, ... (1000000 in all)"
    assert len(few(["x" * 10**6])) < 200
    for value in ("x" * 10**6, list(range(10**6)), {k: k for k in range(10**6)}, [[[[[[1]]]]]], 10**5000):
        assert len(shown(value)) < 300


@pytest.mark.parametrize("ids", [[0, 10**6], [0, 2, 2, 2], list(range(0, 4000, 2))])
def test_an_id_without_a_sample_fills_no_screen(ids: list[int]) -> None:
    environment = torch.tensor(ids)
    data = Batch.of(torch.zeros(len(ids), 1), torch.zeros(len(ids)), environment=environment)
    with pytest.raises(DataError, match="environment") as caught:
        counts(data, "environment")
    assert len(str(caught.value)) < 200


FORMULAS = ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://x")', "\uff1d1", "-x", "--1"]
PLAIN = ["a=b", "x", "", " =1", "-0.5", "+1e-5", "-inf", "1-2", "nan"]


@pytest.mark.parametrize("text", FORMULAS)
def test_text_that_a_spreadsheet_would_compute_is_text(text: str) -> None:
    assert cell(text) == f"'{text}"
    assert table_text([text], [[text]]).count("'") == 2
    frame = pandas.DataFrame({text: [text, text], "n": [-0.5, 2.0]})
    written = frame_text(frame)
    assert written.count("'") == 3
    assert "-0.5" in written
    assert "'-0.5" not in written


@pytest.mark.parametrize("value", [*PLAIN, -1, -0.5, None, True])
def test_numbers_and_other_text_stay(value: object) -> None:
    assert cell(value) is value
