"""Atomic writes: the old content or the new one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from steelyard._files import atomic_path, write_text


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
