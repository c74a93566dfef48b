"""Archives that other people made: what is in them lands below one folder, or nothing does."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest

from steelyard.experiments.data.archives import unpack
from steelyard.experiments.errors import DataError

MOST = 1 << 20
FILES = {"birds/metadata.csv": b"img_id\n", "birds/001/a.jpg": b"\xff" * 100}


def tar(path: Path, members: dict[str, bytes], *more: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in more:
            archive.addfile(info)
    return path


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["birds.tar", "birds.tar.gz", "birds.zip"])
def test_files_are_unpacked_and_nothing_else_is_left(tmp_path: Path, name: str) -> None:
    write = zipped if name.endswith(".zip") else tar
    archive, seen = write(tmp_path / name, FILES), []
    assert unpack(archive, tmp_path / "out", MOST, seen.append) == [tmp_path / "out" / "birds"]
    assert below(tmp_path / "out") == FILES
    assert seen == [1, 2]
    with pytest.raises(DataError, match="birds is there already"):
        unpack(archive, tmp_path / "out", MOST)
    assert below(tmp_path / "out") == FILES


BAD_NAMES = ["../evil", "birds/../../evil", "/tmp/steelyard-evil", "C:/evil", "birds\\..\\evil", "a\nb"]


@pytest.mark.parametrize("name", BAD_NAMES, ids=["above", "through", "root", "drive", "windows", "newline"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_members_do_not_leave_the_folder(tmp_path: Path, name: str, kind: str) -> None:
    members = {**FILES, name: b"evil"}
    archive = tar(tmp_path / "a.tar", members) if kind == "tar" else zipped(tmp_path / "a.zip", members)
    with pytest.raises(DataError, match="would not lie below the folder; nothing is unpacked"):
        unpack(archive, tmp_path / "out", MOST)
    assert list((tmp_path / "out").iterdir()) == []
    assert not list(tmp_path.glob("**/evil"))


@pytest.mark.parametrize(
    "member",
    [
        link("birds/link", "/etc/passwd"),
        link("birds/link", "metadata.csv"),
        link("birds/hard", "birds/metadata.csv", tarfile.LNKTYPE),
        link("birds/pipe", "", tarfile.FIFOTYPE),
        link("birds/device", "", tarfile.CHRTYPE),
    ],
    ids=["out", "in", "hard", "pipe", "device"],
)
def test_links_and_devices_are_refused(tmp_path: Path, member: tarfile.TarInfo) -> None:
    with pytest.raises(DataError, match="is a link or a device; nothing is unpacked"):
        unpack(tar(tmp_path / "a.tar", FILES, member), tmp_path / "out", MOST)
    assert list((tmp_path / "out").iterdir()) == []


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("birds/link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="is a link or a device"):
        unpack(tmp_path / "a.zip", tmp_path / "out", MOST)


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_a_bomb_ends_where_the_limit_is(tmp_path: Path, kind: str) -> None:
    members = {"zeros": bytes(3 * MOST)}
    path = tmp_path / f"bomb.{kind}"
    archive = zipped(path, members) if kind == "zip" else tar(path, members)
    assert archive.stat().st_size < 20_000
    with pytest.raises(DataError, match="takes more than 1048576 bytes"):
        unpack(archive, tmp_path / "out", MOST)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_zip_that_lies_of_its_sizes(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"zeros": bytes(3 * MOST)})
    data = archive.read_bytes().replace((3 * MOST).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    archive.write_bytes(data)
    with pytest.raises(DataError):
        unpack(archive, tmp_path / "out", MOST)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("cut", [1, 30, 100, 200])
@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_damaged_archives_leave_nothing(tmp_path: Path, kind: str, cut: int) -> None:
    path = tmp_path / f"a.{kind}"
    archive = zipped(path, FILES) if kind == "zip" else tar(path, FILES)
    archive.write_bytes(archive.read_bytes()[:-cut])
    with suppress(DataError):  # what was cut off may be tar's padding
        unpack(archive, tmp_path / "out", MOST)
    assert below(tmp_path / "out") in ({}, FILES)
    assert [name for name in os.listdir(tmp_path / "out") if name != "birds"] == []


def test_members_that_stand_there_twice(tmp_path: Path) -> None:
    twice = tar(tmp_path / "a.tar", {"birds": b"file", "birds/a": b"below a file"})
    with pytest.raises(DataError, match="stands there twice, or as a file and a folder"):
        unpack(twice, tmp_path / "out", MOST)


def test_an_archive_behind_a_link_and_one_without_files(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", FILES)
    os.symlink(tmp_path / "a.tar", tmp_path / "b.tar")
    with pytest.raises(DataError, match="symbolic link"):
        unpack(tmp_path / "b.tar", tmp_path / "out", MOST)
    with pytest.raises(DataError, match="holds no files"):
        unpack(tar(tmp_path / "empty.tar", {}), tmp_path / "out", MOST)
    (tmp_path / "c.zip").write_bytes(b"PK, or so")
    with pytest.raises(DataError, match="is damaged, or no archive"):
        unpack(tmp_path / "c.zip", tmp_path / "out", MOST)
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(tmp_path / "none.zip", tmp_path / "out", MOST)
