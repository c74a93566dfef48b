"""Images of one's own: a folder, with a table that describes them or a folder for each class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from steelyard._support import _check
from steelyard._support._code import source_of
from steelyard.experiments.data.columns import read_any
from steelyard.experiments.data.image_folders import class_folders
from steelyard.experiments.data.images import ImageList
from steelyard.experiments.data.label_columns import check_filled
from steelyard.experiments.data.labelled import Gather, Labelled
from steelyard.experiments.data.own_data import sha256
from steelyard.experiments.data.photographs import ImageInputs
from steelyard.experiments.data.splits import Splits
from steelyard.experiments.data.table import Table, check_columns, file_bytes
from steelyard.experiments.data.transforms import Framing
from steelyard.experiments.data.whole import whole_of
from steelyard.experiments.errors import DataError

__all__ = ["OwnImages", "splits_of_images", "with_slashes"]


@dataclass(frozen=True, kw_only=True)
class OwnImages(ImageInputs, Labelled):
    """Images of your own in a folder, a file a sample.

    Input: by default what the frozen `backbone` makes of the image ``(d,)``; or the image ``(3, size, size)``. The
        settings are those of `ImageInputs` and `Framing`.
    Label, metadata, splits: as the settings of `Labelled` say, by the columns of `table`. Without a table there is a
        folder for each class, alone or within folders train, val and test: the columns are then "class", "folder" (of
        the image below that of its class) and "split".
    Sample ids: the column `id`; without it that of `file`, the image's path below `folder`.

    Attributes:
        folder: where the images lie, from the working directory.
        table: .csv (or any other text), .parquet or .npz, from the working directory; empty: a folder for each class.
        file: the table's column with each image's path below `folder`; separators may be Windows'.
        clean: images whose labels are right: a second such table (its images are below `folder`, too), or, where no
            table is given, a second folder with a folder for each class. All of them are the validation split, and all
            others are for training and test. An image that both tables name (by `id`) is not trained on; what lies in
            two folders is two images.
        ending: what is added to each path, such as ".jpg" where the column has names alone.
        separator: what stands between two values of a line of text; " " is any number of blanks.
        missing_marks: what stands for a missing label.
        shape, size, mean, std: see `Framing`.
    """

    name: Literal["images"] = "images"
    folder: str
    target: str = ""
    table: str = ""
    file: str = "file"
    clean: str = ""
    ending: str = ""
    separator: str = ","
    missing_marks: tuple[str, ...] = ("", "NA", "N/A", "NaN", "nan", "null")
    shape: Literal["crop", "squash"] = "crop"
    size: int = 224
    mean: tuple[float, float, float] = Framing().mean
    std: tuple[float, float, float] = Framing().std

    def __post_init__(self) -> None:
        if not self.folder:
            raise ValueError("folder must name the folder of the images, got ''")
        if not self.table:
            if (self.file, self.ending) != ("file", ""):
                raise ValueError("file and ending say how a table names the images: give the table, as `table`")
            _check.store(self, target=self.target or "class")
        if self.file in (self.target, self.group, *self.attributes, self.environment, self.split):
            raise ValueError(f"file names {self.file!r}, which is a label")
        _check.store(self, id=self.id or self.file)
        ImageInputs.__post_init__(self)
        Labelled.__post_init__(self)
        if len(self.separator) != 1 or self.separator in '"\r\n':
            raise ValueError(f"separator must be one character such as ',', ';' or '\\t', got {self.separator!r}")
        if self.clean and (self.inputs == "images" or self.per_group):
            raise ValueError("clean images judge by features: take inputs = 'features', and per_group = 0")
        self.framing  # noqa: B018  refuses what it cannot be

    @property
    def source(self) -> str:
        """The folder."""
        return self.folder

    @property
    def framing(self) -> Framing:
        """What of an image is seen."""
        return Framing(self.shape, self.size, self.mean, self.std)

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of each file that says what the samples are; of the images that of their paths and sizes.

        Raises:
            DataError: one cannot be read.
        """
        return self._digests(self._read()[0])

    def _digests(self, images: Sequence[ImageList]) -> dict[str, str]:
        found = {self.folder: images[0].sizes()}
        found |= {f"images of {self.clean}": one.sizes() for one in images[1:]}
        found |= {name: sha256(file_bytes(Path(name))) for name in (self.table, self.table and self.clean) if name}
        if self.inputs == "features" and self.backbone.file is not None:
            found[self.backbone.weights] = sha256(file_bytes(self.backbone.file))
        return found | {name: sha256(file_bytes(source_of(name))) for name in self.code}

    def read(self) -> Table:
        """Return the table of the images, the clean ones last, as text; no image is opened.

        Raises:
            DataError: a file cannot be read, or has not the columns.
        """
        return self._read()[1]

    def load(self, seed: int, root: Path | None = None, download: bool = False) -> Splits:
        """Return the splits that the table or the folders say, or that `seed` makes.

        Args:
            seed: see `Labelled`.
            root: not needed.
            download: let torchvision download the backbone's weights.

        Raises:
            DataError: table, images or weights are missing or damaged; a column is missing; a value does not fit (its
                line and column are named); a class, a group or an environment has no sample in a split.
        """
        images, table, passed = self._checked()
        own = replace(self, split="split") if not self.table and "split" in table.columns else self
        splits = splits_of_images(own, self.framing, images, table, seed, download, self._digests(images))
        return replace(splits, notes=(*splits.notes, *passed))

    def whole(self) -> Splits:
        """Return all images but the clean ones as the training split (`whole_of`); DataError as `load`."""
        images, table, passed = replace(self, clean="")._checked()

        def features(train: Tensor) -> tuple[Tensor | Gather, tuple[str, ...]]:
            return self.samples(images[0], self.framing, False), ()

        splits = whole_of(self, table, features, self._digests(images), self.missing_marks)
        return replace(splits, notes=(*splits.notes, *passed))

    def opener(self) -> Callable[[int], Image.Image]:
        """Return what opens the image of a row of `read`, decoded to RGB; DataError if it cannot be decoded."""
        images = self._read()[0]

        def opened(row: int) -> Image.Image:
            return images[0].open(row) if row < len(images[0]) else images[1].open(row - len(images[0]))

        return opened

    def _checked(self) -> tuple[tuple[ImageList, ...], Table, tuple[str, ...]]:
        """Return what `_read` does, with a note on files that are no images; DataError where an image is missing."""
        images, table, passed = self._read()
        for one in images:
            one.check()
        return images, table, (f"{passed} files in {self.folder} that are no images were passed over.",) * (passed > 0)

    def _read(self) -> tuple[tuple[ImageList, ...], Table, int]:
        """Return the images and those of `clean`, the table of all, and how many other files lie among them."""
        images, table, passed = self._listed(self.folder, self.table, "data.table")
        if not self.clean:
            return (images,), table, passed
        folder = self.folder if self.table else self.clean
        more, clean, others = self._listed(folder, self.clean if self.table else "", "data.clean")
        columns = {name: values for name, values in clean.columns.items() if name != (self.split or "split")}
        if not self.table:
            columns["file"] = [f"{self.clean}/{file}" for file in columns["file"]]
        unseen = {*table.columns} - {self.file, *self.roles}
        absent = {name: [""] * len(clean) for name in unseen}
        absent |= {self.id: [f"clean {row}" for row in range(len(clean))]}
        absent |= {self.split or "split": ["validation"] * len(clean)}
        return (images, more), table.followed_by(replace(clean, columns=columns), absent), passed + others

    def _listed(self, folder: str, named: str, field: str) -> tuple[ImageList, Table, int]:
        """Return the images in a folder that a table names, or all of them; no image is opened."""
        passed = 0
        if named:
            table = self._read_table(Path(named), field)
        else:
            table, passed = class_folders(Path(folder), "data.clean" if field == "data.clean" else "data.folder")
            head = f"{folder} (no table is given, so a folder is a class)"
            check_columns(head, list(table.columns), self.roles)
        files, lines = tuple(table.columns[self.file]), tuple(table.lines)
        return ImageList(self.called, table.path, Path(folder), files, lines, table.unit), table, passed

    def _read_table(self, path: Path, field: str) -> Table:
        if not path.exists():
            raise DataError(f"{field}: there is no file {path} (paths begin in the working directory, {Path.cwd()})")
        if not Path(self.folder).is_dir():
            raise DataError(f"data.folder: there is no folder {self.folder} (paths begin in the working directory)")
        table = read_any(path, file_bytes(path), self.separator)
        head = f"{path}, line 1" if table.unit == "line" else str(path)
        absent = (self.split, *[self.id] * (self.id != self.file)) if field == "data.clean" else ()
        check_columns(head, list(table.columns), [one for one in (self.file, *self.roles) if one not in absent])
        check_filled(table, self.file, ("",), what="a path")
        return with_slashes(table, self.file, self.ending)


def with_slashes(table: Table, column: str, ending: str = "") -> Table:
    """Return the table with "/" in the paths of `column`, whichever system wrote them, and `ending` behind them."""
    paths = [f"{path.strip()}{ending}".replace("\\", "/").removeprefix("./") for path in table.columns[column]]
    return replace(table, columns={**table.columns, column: paths})


def splits_of_images(
    own: OwnImages,
    framing: Framing,
    images: Sequence[ImageList],
    table: Table,
    seed: int,
    download: bool,
    digests: Mapping[str, str],
) -> Splits:
    """Return the splits of `images`, a row of `table` each, as the settings `own` say but framed by `framing`.

    Of two lists the second has the clean images.
    """
    if own.per_group:
        kept = _few(own, table)
        chosen = set(kept)
        images, table = [images[0].take(kept)], table.where([row in chosen for row in range(len(table))])

    def features(train: Tensor) -> tuple[Tensor | Gather, tuple[str, ...]]:
        found = [own.samples(one, framing, download) for one in images]
        tensors = [one for one in found if isinstance(one, Tensor)]  # features: of clean images there is no other kind
        return torch.cat(tensors) if len(tensors) > 1 else found[0], ()

    clean = sum(map(len, images[1:]))
    return own.splits_of(table, seed, features, digests, own.missing_marks, clean=clean)


def _few(own: OwnImages, table: Table) -> list[int]:
    """Return the rows of the first few samples of each group in each split."""
    named = (own.target, own.group, *own.attributes, own.environment, own.split)
    taken: Counter[tuple[str, ...]] = Counter()
    rows = []
    for row, key in enumerate(zip(*(table.columns[column] for column in named if column), strict=True)):
        taken[key] += 1
        if taken[key] <= own.per_group:
            rows.append(row)
    return rows
