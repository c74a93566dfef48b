"""Waterbirds: the kind of bird, with the background as the attribute."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from steelyard.experiments.data.groups import Groups
from steelyard.experiments.data.images import ImageList, find_folder
from steelyard.experiments.data.photographs import ImageProblem
from steelyard.experiments.data.table import read_csv

__all__ = ["Waterbirds"]

_FOLDERS = (
    *("waterbird_complete95_forest2water2", "cub/data/waterbird_complete95_forest2water2"),  # group_DRO
    "waterbirds_v1.0",  # WILDS
)


@dataclass(frozen=True)
class Waterbirds(ImageProblem):
    """Waterbirds: birds cut out of CUB photographs, on backgrounds of land or water.

    Input: by default what the frozen `backbone` makes of the 224 x 224 image, 2,048 features with a ResNet-50; or the
        images themselves. The settings are those of `ImageProblem`.
    Label: 1 for a waterbird, 0 for a landbird.
    Metadata: attribute (and environment) 0 land, 1 water; group ``2 * label + attribute``. In training 95% of the birds
        stand on their usual background: the groups have 3,498, 184, 56 and 1,057 images.
    Splits: as published: 4,795 training, 1,199 validation, 5,794 test images. In validation and test half of each
        class stands on each background, so their plain average is not that of training's shares: see
        `SplitMetrics.adjusted_accuracy`.
    Layouts: metadata.csv beside the images, in waterbird_complete95_forest2water2/ (group_DRO), waterbirds_v1.0/
        (WILDS), or the data root itself.
    Citation: S. Sagawa, P. W. Koh, T. B. Hashimoto, P. Liang (2020), Distributionally Robust Neural Networks for Group
        Shifts, arXiv:1911.08731.
    Licence: made of CUB-200-2011 and Places, both for research that is not commercial.
    """

    story: ClassVar[str] = (
        "95% of the training birds stand on the background that goes with them. A model that learned the background is "
        "right on the average and wrong on waterbirds over land."
    )
    needs_root: ClassVar[bool] = True
    grayscale: ClassVar[bool] = False
    name: Literal["waterbirds"] = "waterbirds"

    def read(self, root: Path | None) -> ImageList:
        """Return the images and groups that metadata.csv says; no image is opened or looked for.

        Raises:
            DataError: not there, or metadata.csv does not read as published.
        """
        folder, (file,) = find_folder(root, _FOLDERS, [("metadata.csv",)], "Waterbirds")
        table = read_csv(folder / file, ("img_filename", "y", "split", "place"))
        flag = {"0": 0, "1": 1}
        groups = Groups(
            table.codes("y", flag), table.codes("place", flag), ("landbird", "waterbird"), ("land", "water")
        )
        split = table.codes("split", {"0": 0, "1": 1, "2": 2})
        files = tuple(table.columns["img_filename"])
        return ImageList(self.name, table.path, folder, files, tuple(table.lines), groups, split)
