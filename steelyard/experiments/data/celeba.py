"""CelebA: blond hair, with gender as the attribute."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from steelyard.experiments.data.groups import Groups
from steelyard.experiments.data.images import ImageList, find_folder
from steelyard.experiments.data.photographs import ImageProblem
from steelyard.experiments.data.table import Table, read_csv, read_spaced
from steelyard.experiments.errors import DataError

__all__ = ["CelebA"]

# group_DRO; WILDS; torchvision; Kaggle's archive, if unpacked into a folder of its name
_FOLDERS = ("celebA/data", "celebA_v1.0", "celeba", "celeba-dataset")
_CSV = ("list_attr_celeba.csv", "list_eval_partition.csv")
_TXT = ("list_attr_celeba.txt", "list_eval_partition.txt")
_IMAGES = "img_align_celeba"


@dataclass(frozen=True)
class CelebA(ImageProblem):
    """CelebA: faces of celebrities, aligned and cropped to 178 x 218.

    Input: by default what the frozen `backbone` makes of the 224 x 224 image, 2,048 features with a ResNet-50; or the
        images themselves. The settings are those of `ImageProblem`.
    Label: 1 for blond hair (the attribute Blond_Hair).
    Metadata: attribute (and environment) 0 female, 1 male (the attribute Male); group ``2 * label + attribute``. Blond
        men are the smallest group.
    Splits: as published: 162,770 training, 19,867 validation, 19,962 test images.
    Layouts: list_attr_celeba.csv and list_eval_partition.csv (group_DRO, WILDS, Kaggle) or the same as .txt
        (torchvision), beside img_align_celeba/, in celebA/data/, celebA_v1.0/, celeba/, celeba-dataset/ or the data
        root itself. The images may lie one folder deeper, in img_align_celeba/img_align_celeba/, as Kaggle packs them.
    Citation: Z. Liu, P. Luo, X. Wang, X. Tang (2015), Deep Learning Face Attributes in the Wild; as a group problem:
        S. Sagawa et al. (2020), arXiv:1911.08731.
    Licence: for research that is not commercial.
    """

    story: ClassVar[str] = (
        "Blond men are less than one in a hundred of the training faces. A model can be right on nearly all faces and "
        "still call most blond men dark-haired."
    )
    needs_root: ClassVar[bool] = True
    grayscale: ClassVar[bool] = False
    name: Literal["celeba"] = "celeba"

    def read(self, root: Path | None) -> ImageList:
        """Return the images and groups that the attribute files say; no image is opened or looked for.

        Raises:
            DataError: not there, or a file does not read as published.
        """
        folder, choice = find_folder(root, _FOLDERS, [_CSV, _TXT], "CelebA")
        files = (folder / choice[0], folder / choice[1])
        attributes, partition = _csv(*files) if choice == _CSV else _txt(*files)
        _check_same_images(attributes, partition)
        sign = {"-1": 0, "1": 1}
        groups = Groups(
            attributes.codes("Blond_Hair", sign),
            attributes.codes("Male", sign),
            ("not blond", "blond"),
            ("female", "male"),
        )
        split = partition.codes("partition", {"0": 0, "1": 1, "2": 2})
        nested = folder / _IMAGES / _IMAGES
        place = nested if nested.is_dir() else folder / _IMAGES
        names = tuple(attributes.columns["image_id"])
        return ImageList(self.name, attributes.path, place, names, tuple(attributes.lines), groups, split)


def _csv(attributes: Path, partition: Path) -> tuple[Table, Table]:
    return read_csv(attributes, ("image_id", "Blond_Hair", "Male")), read_csv(partition, ("image_id", "partition"))


def _txt(attributes: Path, partition: Path) -> tuple[Table, Table]:
    columns = ("image_id", "partition")
    return (
        read_spaced(attributes, ("image_id", "Blond_Hair", "Male"), key="image_id"),
        read_spaced(partition, columns, columns),
    )


def _check_same_images(attributes: Table, partition: Table) -> None:
    """Raise DataError unless both files name the same images in the same order."""
    ours, theirs = attributes.columns["image_id"], partition.columns["image_id"]
    for row, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            raise partition.error(row, "image_id", f"{one!r} as in {attributes.path}, line {attributes.lines[row]}")
    if len(ours) != len(theirs):
        raise DataError(f"{partition.path} has {len(theirs)} rows, {attributes.path} has {len(ours)}")
