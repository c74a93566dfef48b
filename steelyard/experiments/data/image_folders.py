"""Folders of images, a folder for each class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from steelyard._support._text import few
from steelyard.experiments.data.table import Table
from steelyard.experiments.errors import DataError

__all__ = ["ENDINGS", "class_folders"]

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_TRAIN, _VALIDATION, _TEST = ("train", "training"), ("val", "valid", "validation", "dev"), ("test", "testing")


def class_folders(folder: Path, field: str = "data.folder") -> tuple[Table, int]:
    """Return the images in `folder` as a table, and how many other files lie there.

    Two layouts are known: a folder for each split (train, val, test) that has a folder for each class, or a folder for
    each class. The columns are "file" (the path below `folder`), "class", "folder" (of the image below that of its
    class, "." where it lies in that itself) and, in the first layout, "split". Rows are in the order of their paths;
    names that begin with a dot are passed over.

    Args:
        folder: where they lie.
        field: the setting that names it, for messages.

    Raises:
        DataError: no such folder; no image; a file beside the folders; a folder that is a symbolic link, or cannot be
            listed; folders of splits beside others.
    """
    if not folder.is_dir():
        raise DataError(f"{field}: there is no folder {folder} (paths begin in the working directory, {Path.cwd()})")
    tops = _folders(folder)
    split_of = {top: top.lower() for top in tops if top.lower() in (*_TRAIN, *_VALIDATION, *_TEST)}
    split = any(name in _TRAIN for name in split_of.values())
    if split and (others := [top for top in tops if top not in split_of]):
        raise DataError(
            f"{folder}: {few(map(repr, others))} stands beside the folders of splits ({', '.join(split_of)}); name "
            "the images in a table (data.table), or move it away"
        )
    columns: dict[str, list[str]] = {name: [] for name in ("file", "class", "folder", *(["split"] if split else []))}
    passed = 0
    for file in sorted(_files(folder)):
        parts = file.split("/")
        if len(parts) < 2 + split or not file.lower().endswith(ENDINGS):
            if file.lower().endswith(ENDINGS):
                raise DataError(
                    f"{folder}: the image {file!r} is in no folder of a class (the layout is "
                    f"{'SPLIT/CLASS/IMAGE' if split else 'CLASS/IMAGE, or SPLIT/CLASS/IMAGE'}, or name the images "
                    "in a table, data.table)"
                )
            passed += 1
            continue
        columns["file"].append(file)
        columns["class"].append(parts[split])
        columns["folder"].append("/".join(parts[1 + split : -1]) or ".")
        if split:
            columns["split"].append(split_of[parts[0]])
    if not columns["file"]:
        raise DataError(f"{folder} has no image in a folder of a class (endings {', '.join(ENDINGS)})")
    return Table(folder, columns, range(1, len(columns["file"]) + 1), "image"), passed


def _folders(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error}") from error


def _files(folder: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename or folder} cannot be listed: {error}") from error

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if os.path.islink(os.path.join(place, name)):
                raise DataError(f"{os.path.join(place, name)} is a symbolic link to a folder; put the folder there")
        below = os.path.relpath(place, folder).replace(os.sep, "/")
        prefix = "" if below == "." else f"{below}/"
        yield from (f"{prefix}{name}" for name in files if not name.startswith("."))
