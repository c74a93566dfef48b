"""Atomic writes: the old content or the new one."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from steelyard._support import _files
from steelyard._support._files import atomic_path, lock, write_text


def test_failure_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    write_text(target, "old")
    with pytest.raises(IsADirectoryError), atomic_path(target) as temporary:
        temporary.write_text("half")
        tmp_path.read_bytes()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_errors_name_the_file_that_was_to_be_written(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    with pytest.raises(OSError, match=r"No space left.*: '.*/result\.json'") as caught, atomic_path(target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(target)
    with pytest.raises(FileNotFoundError) as caught, atomic_path(target) as temporary:
        (temporary / "x").parent.unlink()
        temporary.read_bytes()
    assert caught.value.filename == str(target)
    with pytest.raises(FileNotFoundError) as caught, atomic_path(target):
        (tmp_path / "another").read_bytes()
    assert caught.value.filename == str(tmp_path / "another")


def test_success_replaces_and_makes_folders(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.txt"
    write_text(target, "é")
    write_text(target, "new é")
    assert target.read_text(encoding="utf-8") == "new é"
    assert list(target.parent.iterdir()) == [target]


class Windows:
    """msvcrt, as far as a lock needs it: a byte of a file is locked once, until the file is closed or unlocked."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        self.held: dict[tuple[int, int], tuple[int, int]] = {}

    def locking(self, handle: int, mode: int, count: int) -> None:
        assert (mode, count) == (self.LK_NBLCK, 1)
        stat, place = os.fstat(handle), os.lseek(handle, 0, os.SEEK_CUR)
        assert place > 1000  # Windows refuses to read what is locked: not where the holder's name stands
        key = (stat.st_dev, stat.st_ino)
        if key in self.held:
            raise PermissionError(errno.EACCES, "Permission denied")
        self.held[key] = (handle, place)

    def close(self, handle: int) -> None:
        self.held = {key: value for key, value in self.held.items() if value[0] != handle}


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Windows:
    made, close, unlink = Windows(), os.close, os.unlink

    def closed(handle: int) -> None:
        made.close(handle)
        close(handle)

    def unlinked(path: str | Path, **options: object) -> None:
        if any(os.path.samestat(os.fstat(handle), os.stat(path)) for handle, _ in made.held.values()):
            raise PermissionError(errno.EACCES, "in use")  # a file that is open is not removed there
        unlink(path)

    monkeypatch.setattr(_files, "fcntl", None)
    monkeypatch.setattr(_files, "msvcrt", made)
    monkeypatch.setattr(_files.os, "close", closed)
    monkeypatch.setattr(_files.os, "unlink", unlinked)
    return made


def test_windows_has_a_lock(windows: Windows, tmp_path: Path) -> None:
    place = tmp_path / "run.lock"
    for _ in range(2):
        with lock(place) as ours:
            assert ours()
            assert place.read_text().startswith(f"process {os.getpid()} on ")
            with pytest.raises(BlockingIOError, match=rf"is in use by process {os.getpid()} on "), lock(place):
                pass
            assert ours()
        assert not place.exists()
        assert not windows.held


@pytest.fixture
def lockless(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_files, "fcntl", None)
    monkeypatch.setattr(_files, "msvcrt", None)
    _files._warn_of_no_lock.cache_clear()
    yield
    _files._warn_of_no_lock.cache_clear()


@pytest.mark.usefixtures("lockless")
def test_a_system_without_locks_is_warned_of_once(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            with lock(tmp_path / "run.lock") as ours:
                assert ours()
            assert not (tmp_path / "run.lock").exists()
    assert [str(one.message) for one in told] == [
        "this system locks no files: see to it that no second process writes into the same folder"
    ]


def test_a_lock_knows_when_it_is_not_there_any_more(tmp_path: Path) -> None:
    place = tmp_path / "run.lock"
    with lock(place) as ours:
        place.unlink()
        assert not ours()
        with lock(place) as others:
            assert others()
            assert not ours()
            place.rename(tmp_path / "kept.lock")
            (tmp_path / "kept.lock").rename(place)
            assert others()
    assert not place.exists()


def test_another_ones_lock_is_not_removed(tmp_path: Path) -> None:
    place = tmp_path / "run.lock"
    with lock(place):
        place.unlink()
        place.write_text("another's")
    assert place.read_text() == "another's"
