"""Text tables: what is read, and errors that name file, line and column."""

from pathlib import Path

import pytest

from steelyard.experiments.data.table import read_csv, read_spaced
from steelyard.experiments.errors import DataError


def write(tmp_path: Path, data: str | bytes) -> Path:
    path = tmp_path / "table.csv"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_csv_keeps_the_wanted_columns_and_the_lines(tmp_path: Path) -> None:
    table = read_csv(write(tmp_path, '\ufeffa,b,a\n1,"x\ny",3\n\n4, z,6\n'), ["b", "a"])
    assert table.columns == {"b": ["x\ny", "z"], "a": ["1", "4"]}  # of two columns `a` the first
    assert table.lines == [3, 5]  # where each row ends
    assert table.codes("b", {"z": 1, "x\ny": 0}).tolist() == [0, 1]
    assert table.numbers("a").tolist() == [1.0, 4.0]
    assert table.where([False, True]).lines == [5]


def test_windows_line_ends(tmp_path: Path) -> None:
    assert read_csv(write(tmp_path, "a,b\r\n1,2\r\n"), ["b"]).columns == {"b": ["2"]}


def test_a_header_given_and_lines_skipped(tmp_path: Path) -> None:
    table = read_csv(write(tmp_path, "|remark\n1,2\n"), ["b"], ["a", "b"], skip=1)
    assert (table.columns, table.lines) == ({"b": ["2"]}, [2])


def test_spaced_tables(tmp_path: Path) -> None:
    table = read_spaced(write(tmp_path, "2\nx y\nf1 -1  1\nf2  1 -1\n"), ["file", "y"], key="file")
    assert table.columns == {"file": ["f1", "f2"], "y": ["1", "-1"]}
    assert table.lines == [3, 4]
    assert read_spaced(write(tmp_path, "f1 0\nf2 2\n"), ["part"], ["file", "part"]).columns == {"part": ["0", "2"]}


def test_a_header_that_holds_another_separator_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 3: has 2 values, expected 1; the header holds ';': say --separator ';'"):
        read_csv(write(tmp_path, "a;b\n1;2\n3,5;4\n"), ["a;b"])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("a,bb\n1,2\n", r"line 1: there is no column 'b'; did you mean 'bb'\? \(the columns are a, bb\)"),
        ("a,b\n1,2\n3\n", "line 3: has 1 values, expected 2; write the missing values as empty cells"),
        (b"\x1f\x8b\x08\x00abc", "is compressed .gzip.; unpack it first: gunzip "),
        ("a,b\n", "has no rows"),
        ("", "there is no column 'a'"),
        (b"a,b\n1,2\n\xe9,3\n", "line 3: not UTF-8 .byte 0xe9."),
        ('a,b\n1,"2\n', "line 2: a value is opened by a quotation mark"),
        ("a,b\n1,1\n3,2\n", "line 3: 'b' is '2', expected one of '0', '1'"),
        ("a,b\nnan,1\n", "line 2: 'a' is 'nan', expected a number"),
        ("a,b\nx,1\n", "line 2: 'a' is 'x', expected a number"),
        ("a,b\n1e39,1\n", r"line 2: 'a' is '1e39', expected a number of size 3\.4e\+38 at most"),
        ("a,b\n1,1\n-1e39,1\n", r"line 3: 'a' is '-1e39', expected a number of size 3\.4e\+38 at most"),
        ("a,b\ninf,1\n", "line 2: 'a' is 'inf', expected a number >= 0"),
        ("a,b\n3_9,1\n", "line 2: 'a' is '3_9', expected a number >= 0"),
        ("a,b\n\u0663,1\n", "line 2: 'a' is '\u0663', expected a number >= 0"),
        ("bc,Max\n1,1\n", r"no column 'a' \(the columns are bc, Max\)"),
        ("a,b\n-1,1\n", "line 2: 'a' is '-1', expected a number >= 0"),
    ],
)
def test_damaged_csv(tmp_path: Path, data: str | bytes, words: str) -> None:
    path = write(tmp_path, data)
    with pytest.raises(DataError, match=words) as caught:
        table = read_csv(path, ["a", "b"])
        table.codes("b", {"0": 0, "1": 1})
        table.numbers("a", low=0.0)
        table.numbers("b")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("x y\nf1 1 1\n", "line 1: expected the number of rows"),
        ("3\nx y\nf1 1 1\n", "line 1: announces 3 rows, the file has 1; is it truncated"),
        ("1\nx z\nf1 1 1\n", "line 2: there is no column 'y'"),
        ("1\nx y\nf1 1\n", "line 3: has 2 values, expected 3"),
    ],
)
def test_damaged_spaced(tmp_path: Path, data: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_spaced(write(tmp_path, data), ["file", "y"], key="file")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.csv cannot be read"):
        read_csv(tmp_path / "absent.csv", ["a"])
