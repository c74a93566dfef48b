"""Unpack archives that other people made: files alone, below one folder, no more than was expected."""

from __future__ import annotations

import lzma
import os
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from steelyard._support._files import check_links, is_link, open_file
from steelyard.experiments.errors import DataError

__all__ = ["ENDINGS", "is_archive", "unpack"]

ENDINGS = (".tar.gz", ".tgz", ".tar", ".tar.xz", ".tar.bz2", ".zip")
_MOST_FILES = 2_000_000
_BLOCK = 1 << 20
_UNREADABLE = (
    *(tarfile.TarError, zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, ValueError, OverflowError, NotImplementedError, RuntimeError, LookupError, MemoryError),
)
_Member = tuple[str, Callable[[], IO[bytes] | None]]  # the path, and what opens the file; None: a folder


def unpack(
    archive: Path, into: Path, most_bytes: int, progress: Callable[[int], None] = lambda files: None
) -> list[Path]:
    """Unpack a tar (gzip, xz, bzip2 or plain) or a zip archive; return what now lies in `into`, files and folders.

    All is unpacked into a folder of its own first, so that an archive that is refused or a process that is killed
    leaves nothing half; then what stands at its top is moved into `into`, where nothing is replaced.

    Args:
        archive: the file.
        into: made if missing; no link on the way below it is followed.
        most_bytes: what its files may take together.
        progress: called with the number of files so far.

    Raises:
        DataError: it is missing, damaged or encrypted; a member is a link or a device, leaves the folder, or stands
            there twice; its files are too many or too large; something of its name is in `into`; the disk is full.
    """
    try:
        into.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=into))
    except OSError as error:
        raise DataError(f"{into} cannot be written: {error}") from error
    try:
        with _reading(archive) as members:
            _write(archive, members, aside, most_bytes, progress)
        return _move(archive, aside, into)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write(
    archive: Path, members: Iterator[_Member], aside: Path, most_bytes: int, progress: Callable[[int], None]
) -> None:
    left, files = most_bytes, 0
    for name, opened in members:
        path = aside / _relative(archive, name)
        source = opened()
        try:
            if source is None:
                path.mkdir(parents=True, exist_ok=True)
                continue
            files += 1
            if files > _MOST_FILES:
                raise DataError(f"{archive} has more than {_MOST_FILES} files; it is not what is published")
            path.parent.mkdir(parents=True, exist_ok=True)
            with source, open(path, "xb") as target:
                while block := source.read(_BLOCK):
                    left -= len(block)
                    if left < 0:
                        raise DataError(
                            f"{archive}: unpacked it takes more than {most_bytes} bytes; it is not what is published"
                        )
                    target.write(block)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise DataError(f"{archive}: the member {name!r} stands there twice, or as a file and a folder") from error
        progress(files)
    if not files:
        raise DataError(f"{archive} holds no files")


def _move(archive: Path, aside: Path, into: Path) -> list[Path]:
    names = sorted(os.listdir(aside))
    for name in names:
        if os.path.lexists(into / name):
            raise DataError(
                f"{archive} is not unpacked: {into / name} is there already; move it away, or remove the archive"
            )
    for name in names:
        os.rename(aside / name, into / name)
    return [into / name for name in names]


def _relative(archive: Path, name: str) -> PurePosixPath:
    """Return a member's path; DataError if it leaves the folder, on this system or another."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or set(name) & set('\\:\0*?"<>|\n'):
        raise DataError(f"{archive}: the member {name!r} would not lie below the folder; nothing is unpacked")
    return path


@contextmanager
def _reading(archive: Path) -> Iterator[Iterator[_Member]]:
    """Yield the members of an archive; what its readers raise of damaged files becomes DataError."""
    try:
        check_links(archive)
        with open_file(archive) as file:
            if archive.name.endswith(".zip"):
                with zipfile.ZipFile(file) as opened:
                    yield _of_zip(archive, opened)
            else:
                with tarfile.open(fileobj=file, mode="r:*") as packed:
                    yield _of_tar(archive, packed)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{archive} cannot be unpacked: {error}") from error
    except _UNREADABLE as error:
        raise DataError(f"{archive} is damaged, or no archive ({', '.join(ENDINGS)}): {error}") from error


def _of_zip(archive: Path, opened: zipfile.ZipFile) -> Iterator[_Member]:
    for member in opened.infolist():
        kind = member.external_attr >> 16 & 0o170000
        if kind not in (0, 0o100000, 0o040000):
            raise DataError(f"{archive}: the member {member.filename!r} is a link or a device; nothing is unpacked")
        folder = member.is_dir()
        yield member.filename, (lambda: None) if folder else (lambda member=member: opened.open(member))  # type: ignore[misc]


def _of_tar(archive: Path, packed: tarfile.TarFile) -> Iterator[_Member]:
    for member in packed:
        if not (member.isreg() or member.isdir()) or member.issparse():
            raise DataError(f"{archive}: the member {member.name!r} is a link or a device; nothing is unpacked")
        if member.isdir() and member.name in (".", "./"):
            continue
        yield member.name, (lambda: None) if member.isdir() else (lambda member=member: packed.extractfile(member))  # type: ignore[misc]


def is_archive(path: Path) -> bool:
    """Return whether a file has an archive's name, and is none through a link."""
    return path.name.endswith(ENDINGS) and path.is_file() and not is_link(path)
