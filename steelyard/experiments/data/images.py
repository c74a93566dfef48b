"""Image files as a table or a folder names them: looked for, identified and decoded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Int, Shaped
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from steelyard._support import _check
from steelyard._support._random import seed_of
from steelyard._support._workers import worker_context
from steelyard.experiments.data.decoding import open_image
from steelyard.experiments.errors import DataError

__all__ = ["ImageList", "Transform", "decode"]

Transform = Callable[[Image.Image], Tensor]
SHOWN = 5  # missing files that an error names


@dataclass(frozen=True)
class ImageList:
    """The images of a data set.

    Attributes:
        name: the data set's name.
        table: the metadata file that names them, or the folder that was listed, for messages.
        folder: where the image files lie.
        files: each image's path below `folder`, with "/".
        lines: where in `table` each image stands (from 1).
        unit: what `lines` counts, for messages.
    """

    name: str
    table: Path
    folder: Path
    files: tuple[str, ...]
    lines: tuple[int | str, ...]
    unit: str = "line"

    def __len__(self) -> int:
        return len(self.files)

    def check(self) -> None:
        """Look whether everything can be loaded, but for the images' content; each folder is listed once.

        Raises:
            DataError: a path leaves `folder`, by its own parts or through a symbolic link (`folder` itself may be
                one); a file is missing: the first few and their number.
        """
        base = os.path.realpath(self.folder)
        for file, line in zip(self.files, self.lines, strict=True):
            if _leaves(file):
                raise DataError(f"{self.table}, {self.unit} {line}: the path {file!r} leaves the folder {self.folder}")
        present = _present(Path(base), {file.rpartition("/")[0] or "." for file in self.files})
        missing = [row for row, file in enumerate(self.files) if file not in present]
        if missing:
            first = ", ".join(f"{self.files[row]!r} ({self.unit} {self.lines[row]})" for row in missing[:SHOWN])
            raise DataError(
                f"{len(missing)} of {len(self)} images that {self.table} names are not in {self.folder}; "
                f"{'the first are' if len(missing) > 1 else 'it is'} {first}"
            )
        for row, file in enumerate(self.files):
            if present[file] and not _inside(base, os.path.realpath(os.path.join(base, file))):
                raise DataError(
                    f"{self.table}, {self.unit} {self.lines[row]}: {file!r} is a link that leaves the folder "
                    f"{self.folder}"
                )

    def take(self, rows: Sequence[int]) -> ImageList:
        """Return the images in `rows`."""
        files, lines = tuple(self.files[row] for row in rows), tuple(self.lines[row] for row in rows)
        return replace(self, files=files, lines=lines)

    def fingerprint(self, rows: Iterable[int]) -> str:
        """Return a digest of the images in `rows`: path, size and time of change of each, in that order.

        No image is read, and labels are not among it, nor where the data set lies.
        """
        digest = hashlib.sha256()
        for row in rows:
            stat = os.stat(self.folder / self.files[row])
            digest.update(f"{self.files[row]}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def sizes(self) -> str:
        """Return a digest of path and size of each image, which a copy of the folder shares; DataError: one is gone."""
        digest = hashlib.sha256()
        for file in self.files:
            try:
                size = os.stat(self.folder / file).st_size
            except (OSError, ValueError) as error:
                raise DataError(f"the image {self.folder / file} cannot be read: {error}") from error
            digest.update(f"{file}\0{size}\n".encode())
        return digest.hexdigest()

    def open(self, row: int) -> Image.Image:
        """Return the image in `row`, decoded to RGB; DataError if it is unreadable, truncated or too large."""
        return open_image(self.folder / self.files[row], f"{self.table}, {self.unit} {self.lines[row]}")


def decode(
    images: ImageList,
    rows: Iterable[Int[Tensor, " _"]],
    transform: Transform,
    *,
    workers: int = 0,
    seed: int = 0,
    first: int = 0,
) -> Iterator[Shaped[Tensor, "_ *shape"]]:
    """Yield the images at each of `rows`, decoded and transformed, in order.

    Workers are two batches each ahead of what was asked for. They are started afresh (a forked copy of a process with
    threads can deadlock; the server that they are forked from has imported torch and nothing more), so a script that
    asks for any needs the guard ``if __name__ == "__main__":``.

    Args:
        images: the data set.
        rows: positions in it, a tensor for each batch; may be endless.
        transform: PIL image -> tensor. What it draws from torch's generator is decided by `seed`, the number of the
            batch and the place in it, so neither workers nor an interruption change it.
        workers: processes that decode; 0 decodes here.
        seed: of the transform's draws.
        first: the number of the first batch, for rows that go on where others stopped.

    Raises:
        DataError: an image is damaged; the message is the one of `ImageList.open`, whichever process it arose in.
    """
    from steelyard.experiments.data import _worker

    loader = DataLoader(
        _worker.Decoded(images.folder, images.files, f"{images.table}, {images.unit}", images.lines, transform),
        batch_sampler=_Wanted(rows, seed, first),
        generator=torch.Generator().manual_seed(0),  # without one, the loader draws from the global one
        num_workers=_check.integer("workers", workers, low=0),
        collate_fn=_worker.collate,
        multiprocessing_context=worker_context(_worker.__name__) if workers else None,
    )
    for found in loader:
        if isinstance(found, str):
            raise DataError(found)
        yield found


@dataclass(frozen=True)
class _Wanted:
    """Lists of (row, seed) for the batches from number `first` on."""

    rows: Iterable[Tensor]
    seed: int
    first: int

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for number, rows in enumerate(self.rows, start=self.first):
            yield [(row, seed_of(self.seed, number, place)) for place, row in enumerate(rows.tolist())]


def _leaves(file: str) -> bool:
    parts = file.replace("\\", "/").split("/")
    return not file or "\0" in file or ".." in parts or parts[0] == "" or ":" in parts[0]


def _inside(base: str, path: str) -> bool:
    return path == base or path.startswith(base.rstrip(os.sep) + os.sep)


def _present(base: Path, folders: set[str]) -> dict[str, bool]:
    """Return the files in these folders below `base`, and of each whether a symbolic link leads to it."""
    found: dict[str, bool] = {}
    for folder in folders:
        place = base / folder
        linked = os.path.realpath(place) != str(place)
        try:
            with os.scandir(place) as entries:
                prefix = "" if folder == "." else f"{folder}/"
                found |= {f"{prefix}{entry.name}": linked or entry.is_symlink() for entry in entries if entry.is_file()}
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise DataError(f"{place} cannot be listed: {error}") from error
    return found
