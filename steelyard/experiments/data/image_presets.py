"""What the published data sets of images share: layouts that are looked for, and labels read off them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from steelyard._support._text import few
from steelyard.experiments.data.images import ImageList
from steelyard.experiments.data.own_images import OwnImages, splits_of_images
from steelyard.experiments.data.photographs import ImageInputs
from steelyard.experiments.data.splits import Splits
from steelyard.experiments.data.table import Table
from steelyard.experiments.data.transforms import Framing
from steelyard.experiments.errors import DataError

__all__ = ["SPLITS", "ImagePreset", "Labels", "Layout", "find_layout", "in_words"]

SPLITS: Mapping[str, int] = {"0": 0, "1": 1, "2": 2}
"""What the published tables call training, validation and test."""

Layout = tuple[str, ...]
"""The files, below one folder, that make a layout."""


@dataclass(frozen=True)
class Labels:
    """What a published data set says: the images, and a table with the columns "class", "attribute" and "split"."""

    images: ImageList
    table: Table


@dataclass(frozen=True)
class ImagePreset(ImageInputs, ABC):
    """A published data set of images with groups: `OwnImages` with its labels known."""

    classes: ClassVar[tuple[str, str]]
    framing: ClassVar[Framing]
    needs_root: ClassVar[bool] = True
    grayscale: ClassVar[bool] = False

    @abstractmethod
    def read(self, root: Path | None) -> Labels:
        """Return the images and labels that the metadata say; no image is opened or looked for.

        Raises:
            DataError: not there, or a file does not read as published.
        """

    def load(self, seed: int, root: Path | None = None, download: bool = False) -> Splits:
        """Return the published splits.

        Args:
            seed: not used: the splits are published.
            root: the data root; required.
            download: let torchvision download the backbone's weights. The images are not downloaded.

        Raises:
            DataError: data or weights missing or damaged; see `ImageList.check` and `features`.
        """
        labels = self.read(root)
        own = OwnImages(
            folder=str(labels.images.folder),
            table=str(labels.table.path),
            id="file",
            target="class",
            classes=self.classes,
            attributes=("attribute",),
            split="split",
            inputs=self.inputs,
            backbone=self.backbone,
            augment=self.augment,
            workers=self.workers,
            per_group=self.per_group,
        )
        labels.images.check()
        splits = splits_of_images(own, self.framing, [labels.images], labels.table, seed, download, {})
        # As published: these have no names but their positions, and nothing of the user's to be said of them.
        return replace(splits, name=labels.images.name, ids=(), notes=())


def in_words(table: Table, column: str, words: Sequence[str]) -> list[str]:
    """Return the values of `column`, -1 or 0 and 1, as the two `words`.

    Raises:
        DataError: another value, or -1 and 0 in one column, where one of them may stand for what is not known.
    """
    codes = table.codes(column, _SIGNS)
    values = table.columns[column]
    zero = next((row for row, value in enumerate(values) if value.startswith("0")), None)
    if zero is not None and any(value.startswith("-") for value in values):
        raise table.error(zero, column, "-1 or 1, as in other rows")
    return [words[code] for code in codes.tolist()]


_SIGNS: Mapping[str, int] = {"0": 0, "1": 1, "-1": 0, "0.0": 0, "1.0": 1, "-1.0": 0}


def find_layout(root: Path | None, folders: Sequence[str], choices: Sequence[Layout], what: str) -> tuple[Path, Layout]:
    """Return the first of ``root/folder`` and ``root`` that holds all files of one of `choices`, and that choice.

    Raises:
        DataError: there is none; the message says what was looked for.
    """
    files = few(" and ".join(choice) for choice in choices)
    layout = f"looked for one of {files}, in {', '.join(folders)} below the root and in the root itself"
    if root is None:
        raise DataError(f"{what} needs a data root (--data-root, or STEELYARD_DATA); {layout}")
    for folder in (*folders, "."):
        for choice in choices:
            if all((root / folder / file).is_file() for file in choice):
                return root / folder, choice
    raise DataError(f"{what} is not under {root}: {layout}. It is not downloaded: put it there as it is published")
