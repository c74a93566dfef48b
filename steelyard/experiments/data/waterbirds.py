"""Waterbirds: the kind of bird, with the background as the attribute."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from steelyard.experiments.data.image_presets import SPLITS, ImagePreset, Labels, find_layout, in_words
from steelyard.experiments.data.images import ImageList
from steelyard.experiments.data.own_images import with_slashes
from steelyard.experiments.data.table import read_csv
from steelyard.experiments.data.transforms import WATERBIRDS, Framing

__all__ = ["Waterbirds"]

_FOLDER = "waterbird_complete95_forest2water2"
_FOLDERS = (
    *(_FOLDER, f"cub/data/{_FOLDER}", f"data/{_FOLDER}"),  # group_DRO, JTT: from above cub/, or in it
    "waterbirds_v1.0",  # WILDS
    *(f"waterbirds/{_FOLDER}", "waterbirds"),  # SubpopBench, whose own table lies above the images
)
_COLUMNS = {  # of each table that is known: image, label, background, split
    "metadata.csv": ("img_filename", "y", "place", "split"),
    "metadata_aug.csv": ("img_filename", "y", "place", "split"),  # JTT's, with more columns
    "metadata_waterbirds.csv": ("filename", "y", "a", "split"),  # SubpopBench's
}


@dataclass(frozen=True)
class Waterbirds(ImagePreset):
    """Waterbirds: birds cut out of CUB photographs, on backgrounds of land or water.

    Input: by default what the frozen `backbone` makes of the 224 x 224 image, 2,048 features with a ResNet-50; or the
        images themselves. The settings are those of `ImageInputs`.
    Label: 1 for a waterbird, 0 for a landbird.
    Metadata: attribute (and environment) 0 land, 1 water; group ``2 * label + attribute``. In training 95% of the birds
        stand on their usual background: the groups have 3,498, 184, 56 and 1,057 images.
    Splits: as published: 4,795 training, 1,199 validation, 5,794 test images. In validation and test half of each
        class stands on each background, so their plain average is not that of training's shares: see
        `SplitMetrics.adjusted_accuracy`.
    Layouts: metadata.csv beside the images, in waterbird_complete95_forest2water2/ (group_DRO; in cub/data/, too),
        waterbirds_v1.0/ (WILDS), or the data root itself; or JTT's metadata_aug.csv there; or SubpopBench's
        metadata_waterbirds.csv, there or one folder above. Labels are 0 or -1 and 1, separators may be Windows'.
    Citation: S. Sagawa, P. W. Koh, T. B. Hashimoto, P. Liang (2020), Distributionally Robust Neural Networks for Group
        Shifts, arXiv:1911.08731.
    Licence: made of CUB-200-2011 and Places, both for research that is not commercial.
    """

    story: ClassVar[str] = (
        "95% of the training birds stand on the background that goes with them. A model that learned the background is "
        "right on the average and wrong on waterbirds over land."
    )
    classes: ClassVar[tuple[str, str]] = ("landbird", "waterbird")
    framing: ClassVar[Framing] = WATERBIRDS
    name: Literal["waterbirds"] = "waterbirds"

    def read(self, root: Path | None) -> Labels:
        """Return the images and groups that the metadata says; no image is opened or looked for.

        Raises:
            DataError: not there, or the metadata does not read as published.
        """
        folder, (file,) = find_layout(root, _FOLDERS, [(name,) for name in _COLUMNS], "Waterbirds")
        image, label, place, split = _COLUMNS[file]
        table = read_csv(folder / file, (image, label, place, split))
        table.codes(split, SPLITS)
        columns = {
            "file": with_slashes(table, image).columns[image],
            "class": in_words(table, label, self.classes),
            "attribute": in_words(table, place, ("land", "water")),
            "split": table.columns[split],
        }
        below = folder / _FOLDER
        images = below if below.is_dir() else folder
        files = tuple(columns["file"])
        return Labels(
            ImageList(self.name, table.path, images, files, tuple(table.lines)), replace(table, columns=columns)
        )
