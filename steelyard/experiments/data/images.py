"""Image data sets as their metadata describe them: labels, groups and splits without opening an image."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from steelyard import _check
from steelyard.bilevel.batch import Batch
from steelyard.experiments.data.groups import Groups
from steelyard.experiments.errors import DataError

__all__ = ["ImageList", "Transform", "batches", "find_folder"]

Transform = Callable[[Image.Image], Tensor]
SHOWN = 5  # missing files that an error names


@dataclass(frozen=True)
class ImageList:
    """The images of a data set, as its metadata say.

    Attributes:
        name: the data set's name.
        table: the metadata file, for messages.
        folder: where the image files lie.
        files: each image's path below `folder`, with "/".
        lines: the line of `table` that each image stands in.
        groups: each image's class and attribute.
        split: ``(n,)`` 0 training, 1 validation, 2 test.
    """

    name: str
    table: Path
    folder: Path
    files: tuple[str, ...]
    lines: tuple[int, ...]
    groups: Groups
    split: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def parts(self) -> tuple[Int[Tensor, " _"], Int[Tensor, " _"], Int[Tensor, " _"]]:
        """The positions of the training, validation and test images."""
        train, validation, test = ((self.split == code).nonzero().squeeze(1) for code in range(3))
        return train, validation, test

    def check(self) -> None:
        """Look whether everything can be loaded, but for the images' content; each folder is listed once.

        Raises:
            DataError: a group has no image in a split; a path leaves `folder`, by its own parts or through a symbolic
                link (`folder` itself may be one); a file is missing: the first few and their number.
        """
        self.groups.check(self.parts, self.table)
        base = os.path.realpath(self.folder)
        for file, line in zip(self.files, self.lines, strict=True):
            if _leaves(file):
                raise DataError(f"{self.table}, line {line}: the path {file!r} leaves the folder {self.folder}")
        present = _present(Path(base), {file.rpartition("/")[0] or "." for file in self.files})
        missing = [row for row, file in enumerate(self.files) if file not in present]
        if missing:
            first = ", ".join(f"{self.files[row]!r} (line {self.lines[row]})" for row in missing[:SHOWN])
            raise DataError(
                f"{len(missing)} of {len(self)} images that {self.table} names are not in {self.folder}; "
                f"{'the first are' if len(missing) > 1 else 'it is'} {first}"
            )
        for row, file in enumerate(self.files):
            if present[file] and not _inside(base, os.path.realpath(os.path.join(base, file))):
                raise DataError(
                    f"{self.table}, line {self.lines[row]}: {file!r} is a link that leaves the folder {self.folder}"
                )

    def open(self, row: int) -> Image.Image:
        """Return the image in `row`, decoded to RGB; DataError if it is unreadable or truncated."""
        path = self.folder / self.files[row]
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        # a damaged file makes PIL's decoders raise nearly anything
        except (OSError, ValueError, SyntaxError, EOFError, IndexError, Image.DecompressionBombError) as error:
            raise DataError(f"{path} ({self.table}, line {self.lines[row]}) cannot be decoded: {error}") from error


def batches(
    images: ImageList,
    rows: Int[Tensor, " k"],
    transform: Transform,
    *,
    size: int,
    workers: int = 0,
    shuffle: torch.Generator | None = None,
) -> Iterator[Batch]:
    """Yield the images at `rows` as batches, decoded and transformed in worker processes.

    A batch's `index` holds positions in `rows`, so that for ``rows = images.parts[0]`` these are the ids of the
    training samples; `environment` is the attribute.

    Args:
        images: the data set.
        rows: positions in it.
        transform: PIL image -> tensor.
        size: images a batch; the last one may be smaller.
        workers: processes that decode; 0 decodes here.
        shuffle: draws the order, and the seeds of the workers' random transforms (with ``workers = 0`` random
            transforms draw from torch's global generator); None keeps the order.

    Raises:
        DataError: an image is damaged; the message is the one of `ImageList.open`, whichever process it arose in.
    """
    _check.integer("size", size, low=1)
    loader = DataLoader(
        _Decoded(images, rows.tolist(), transform),
        batch_size=size,
        shuffle=shuffle is not None,
        generator=shuffle or torch.Generator().manual_seed(0),  # without one, the loader draws from the global one
        num_workers=workers,
        collate_fn=_collate,
    )
    groups = images.groups
    for found in loader:
        if isinstance(found, str):
            raise DataError(found)
        inputs, positions = found
        at = rows[positions]
        yield Batch(inputs, groups.targets[at], positions, groups.attribute[at], groups.ids[at])


@dataclass(frozen=True)
class _Decoded(Dataset[tuple[Tensor, int] | str]):
    """Item k is an image and k, or the message of the error: an exception would come with the worker's traceback."""

    images: ImageList
    rows: list[int]
    transform: Transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, k: int) -> tuple[Tensor, int] | str:
        try:
            return self.transform(self.images.open(self.rows[k])), k
        except DataError as error:
            return str(error)


def _collate(items: list[tuple[Tensor, int] | str]) -> tuple[Tensor, Tensor] | str:
    pairs = []
    for item in items:
        if isinstance(item, str):
            return item
        pairs.append(item)
    return torch.stack([image for image, _ in pairs]), torch.tensor([k for _, k in pairs])


def find_folder(
    root: Path | None, folders: Sequence[str], choices: Sequence[tuple[str, ...]], what: str
) -> tuple[Path, tuple[str, ...]]:
    """Return the first of ``root/folder`` and ``root`` that holds all files of one of `choices`, and that choice.

    Raises:
        DataError: there is none; the message says what was looked for.
    """
    files = ", or ".join(" and ".join(choice) for choice in choices)
    layout = f"looked for {files}, in {', '.join(folders)} below the root and in the root itself"
    if root is None:
        raise DataError(f"{what} needs a data root (--data-root, or STEELYARD_DATA); {layout}")
    for folder in (*folders, "."):
        for choice in choices:
            if all((root / folder / file).is_file() for file in choice):
                return root / folder, choice
    raise DataError(f"{what} is not under {root}: {layout}. It is not downloaded: put it there as it is published")


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
