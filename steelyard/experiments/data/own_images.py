"""Images of one's own: a folder, with a table that describes them or a folder for each class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from steelyard._support import _check
from steelyard._support._code import source_of
from steelyard.experiments.data.columns import read_any
from steelyard.experiments.data.image_folders import class_folders
from steelyard.experiments.data.images import ImageList
from steelyard.experiments.data.labelled import Gather, Labelled
from steelyard.experiments.data.own_data import sha256
from steelyard.experiments.data.photographs import ImageInputs
from steelyard.experiments.data.splits import Splits
from steelyard.experiments.data.table import Table, check_columns, file_bytes
from steelyard.experiments.data.transforms import Framing
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

    def _digests(self, images: ImageList) -> dict[str, str]:
        found = {self.folder: images.sizes()}
        if self.table:
            found[self.table] = sha256(file_bytes(Path(self.table)))
        if self.inputs == "features" and self.backbone.file is not None:
            found[self.backbone.weights] = sha256(file_bytes(self.backbone.file))
        return found | {name: sha256(file_bytes(source_of(name))) for name in self.code}

    def read(self) -> Table:
        """Return the table of the images, as text; no image is opened.

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
        images, table, passed = self._read()
        images.check()
        own = replace(self, split="split") if not self.table and "split" in table.columns else self
        notes = (f"{passed} files in {self.folder} that are no images were passed over.",) if passed else ()
        splits = splits_of_images(own, self.framing, images, table, seed, download, self._digests(images))
        return replace(splits, notes=(*splits.notes, *notes))

    def _read(self) -> tuple[ImageList, Table, int]:
        """Return the images, their table, and how many other files lie among them; no image is opened."""
        folder, passed = Path(self.folder), 0
        if self.table:
            table = self._read_table(Path(self.table))
        else:
            table, passed = class_folders(folder)
            head = f"{folder} (no table is given, so a folder is a class)"
            check_columns(head, list(table.columns), self.roles)
        name = self.called
        files = tuple(table.columns[self.file])
        return ImageList(name, table.path, folder, files, tuple(table.lines), table.unit), table, passed

    def _read_table(self, path: Path) -> Table:
        if not path.exists():
            raise DataError(f"data.table: there is no file {path} (paths begin in the working directory, {Path.cwd()})")
        if not Path(self.folder).is_dir():
            raise DataError(f"data.folder: there is no folder {self.folder} (paths begin in the working directory)")
        table = read_any(path, file_bytes(path), self.separator)
        head = f"{path}, line 1" if table.unit == "line" else str(path)
        check_columns(head, list(table.columns), (self.file, *self.roles))
        return with_slashes(table, self.file, self.ending)


def with_slashes(table: Table, column: str, ending: str = "") -> Table:
    """Return the table with "/" in the paths of `column`, whichever system wrote them, and `ending` behind them."""
    paths = [f"{path.strip()}{ending}".replace("\\", "/").removeprefix("./") for path in table.columns[column]]
    return replace(table, columns={**table.columns, column: paths})


def splits_of_images(
    own: OwnImages,
    framing: Framing,
    images: ImageList,
    table: Table,
    seed: int,
    download: bool,
    digests: Mapping[str, str],
) -> Splits:
    """Return the splits of `images`, a row of `table` each, as the settings `own` say but framed by `framing`."""
    if own.per_group:
        kept = _few(own, table)
        chosen = set(kept)
        images, table = images.take(kept), table.where([row in chosen for row in range(len(table))])

    def features(train: Tensor) -> tuple[Tensor | Gather, tuple[str, ...]]:
        return own.samples(images, framing, download), ()

    return own.splits_of(table, seed, features, digests, own.missing_marks)


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
