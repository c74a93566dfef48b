"""A fetch from an address of the user's: whole or not there, and resumed where it stopped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from steelyard.experiments.data.fetching import fetch, name_of
from steelyard.experiments.errors import DataError
from tests.experiments.served import Served, serving

DATA = bytes(range(256)) * 40
MOST = 1 << 20


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving({"/a.zip": DATA}) as one:
        yield one


def test_a_file_comes_whole_and_is_not_fetched_again(served: Served, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    fetch(f"{served.address}/a.zip", tmp_path / "b" / "a.zip", MOST, lambda done, of: seen.append((done, of)))
    assert (tmp_path / "b" / "a.zip").read_bytes() == DATA
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["a.zip"]
    assert seen[-1] == (len(DATA), len(DATA))
    fetch(f"{served.address}/a.zip", tmp_path / "b" / "a.zip", MOST)
    assert served.asked == [""]


def test_a_fetch_that_stopped_is_gone_on_with(served: Served, tmp_path: Path) -> None:
    served.cut = 3000
    for _ in range(3):
        with pytest.raises(DataError, match=r"of 10240 bytes came; the same command goes on from there"):
            fetch(f"{served.address}/a.zip", tmp_path / "a.zip", MOST)
        assert not (tmp_path / "a.zip").exists()
    fetch(f"{served.address}/a.zip", tmp_path / "a.zip", MOST)
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert served.asked == ["", "bytes=3000-", "bytes=6000-", "bytes=9000-"]


@pytest.mark.parametrize("case", ["changed", "no ranges", "no tags"])
def test_it_begins_again_where_the_rest_may_be_another_files(served: Served, tmp_path: Path, case: str) -> None:
    served.cut, served.tags = 3000, case != "no tags"
    with pytest.raises(DataError):
        fetch(f"{served.address}/a.zip", tmp_path / "a.zip", MOST)
    served.cut, served.ranges = 0, case != "no ranges"
    if case == "changed":
        served.files["/a.zip"] = DATA[::-1]
    fetch(f"{served.address}/a.zip", tmp_path / "a.zip", MOST)
    assert (tmp_path / "a.zip").read_bytes() == served.files["/a.zip"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_what_is_refused(served: Served, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the server answers 404"):
        fetch(f"{served.address}/b.zip", tmp_path / "b.zip", MOST)
    with pytest.raises(DataError, match="has 10240 bytes, more than 1000: it is not what is published"):
        fetch(f"{served.address}/a.zip", tmp_path / "a.zip", 1000)
    (tmp_path / "c.zip.part").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="symbolic link"):
        fetch(f"{served.address}/a.zip", tmp_path / "c.zip", MOST)
    assert not (tmp_path / "elsewhere").exists()


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with serving({}) as gone:
        address = gone.address
    with pytest.raises(DataError, match="could not be fetched: .*resumes what came"):
        fetch(f"{address}/a.zip", tmp_path / "a.zip", MOST)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://example.org/data/birds.tar.gz?x=1", "birds.tar.gz"),
        ("https://example.org/rest/contents/blob/", "other.tar.gz"),
        ("https://example.org/..", "other.tar.gz"),
        ("https://example.org/a%2F..%2F.bashrc", "other.tar.gz"),
        ("https://example.org/%2e%2e%2fbirds.zip", "birds.zip"),
    ],
    ids=["name", "none", "above", "hidden", "encoded"],
)
def test_the_name_is_that_of_the_address(url: str, name: str) -> None:
    assert name_of(url, "other.tar.gz") == name


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://example.org/a", "a.zip", "http://", "http://[", ""],
    ids=["file", "ftp", "none", "no host", "half", "empty"],
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(DataError, match="--url"):
        name_of(url, "other")
