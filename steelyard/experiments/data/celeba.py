"""CelebA: blond hair, with gender as the attribute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import ClassVar, Literal

from steelyard.experiments.data.image_presets import SPLITS, ImagePreset, Labels, Layout, find_layout, in_words
from steelyard.experiments.data.images import ImageList
from steelyard.experiments.data.own_images import with_slashes
from steelyard.experiments.data.table import Table, file_bytes, read_csv, read_spaced
from steelyard.experiments.data.transforms import CELEBA, Framing
from steelyard.experiments.errors import DataError

__all__ = ["CelebA"]

_FOLDERS = (
    *("celebA/data", "data"),  # group_DRO, JTT: from above celebA/, or in it
    "celebA_v1.0",  # WILDS
    "celeba",  # torchvision, SubpopBench
    *("celeba-dataset", "archive"),  # Kaggle's archive, unpacked into a folder of one of its names
    *("CelebA", "celebA"),
)
_KINDS = ("csv", "txt")
_ATTRIBUTES, _PARTITION = "list_attr_celeba", "list_eval_partition"
_PLACES = (("", ""), ("Anno/", "Eval/"))  # the second: as its authors publish it
_PAIRS: list[Layout] = [
    (f"{one}{_ATTRIBUTES}.{kind}", f"{two}{_PARTITION}.{other}")
    for (one, two), (kind, other) in product(_PLACES, [(a, b) for a in _KINDS for b in _KINDS])
]
_PAIRS.sort(key=lambda pair: pair[0][-3:] != pair[1][-3:])  # two of a kind before a mixed pair
_TABLES = {  # one table alone: image, label, attribute, split
    "metadata_celeba.csv": ("filename", "y", "a", "split"),  # SubpopBench's
    "metadata.csv": ("image_id", "Blond_Hair", "Male", "split"),  # JTT's
    "metadata_aug.csv": ("image_id", "Blond_Hair", "Male", "split"),
}
_IMAGES = "img_align_celeba"
_IMAGE_PLACES = (f"{_IMAGES}/{_IMAGES}", _IMAGES, f"Img/{_IMAGES}", f"Img/{_IMAGES}/{_IMAGES}")


@dataclass(frozen=True)
class CelebA(ImagePreset):
    """CelebA: faces of celebrities, aligned and cropped to 178 x 218.

    Input: by default what the frozen `backbone` makes of the 224 x 224 image, 2,048 features with a ResNet-50; or the
        images themselves. The settings are those of `ImageInputs`.
    Label: 1 for blond hair (the attribute Blond_Hair).
    Metadata: attribute (and environment) 0 female, 1 male (the attribute Male); group ``2 * label + attribute``. Blond
        men are the smallest group.
    Splits: as published: 162,770 training, 19,867 validation, 19,962 test images.
    Layouts: list_attr_celeba and list_eval_partition, each .csv (group_DRO, WILDS, Kaggle) or .txt (torchvision, and
        the authors' Anno/ and Eval/), read by what they hold; or JTT's metadata.csv or SubpopBench's
        metadata_celeba.csv alone; beside img_align_celeba/ (Img/img_align_celeba/), in celebA/data/, celebA_v1.0/,
        celeba/, celeba-dataset/ or the data root itself. The images may lie one folder deeper, in
        img_align_celeba/img_align_celeba/, as Kaggle packs them. Labels are 0 or -1 and 1.
    Citation: Z. Liu, P. Luo, X. Wang, X. Tang (2015), Deep Learning Face Attributes in the Wild; as a group problem:
        S. Sagawa et al. (2020), arXiv:1911.08731.
    Licence: for research that is not commercial.
    """

    story: ClassVar[str] = (
        "Blond men are less than one in a hundred of the training faces. A model can be right on nearly all faces and "
        "still call most blond men dark-haired."
    )
    classes: ClassVar[tuple[str, str]] = ("not blond", "blond")
    framing: ClassVar[Framing] = CELEBA
    name: Literal["celeba"] = "celeba"

    def read(self, root: Path | None) -> Labels:
        """Return the images and groups that the metadata say; no image is opened or looked for.

        Raises:
            DataError: not there, or a file does not read as published.
        """
        folder, choice = find_layout(root, _FOLDERS, [*_PAIRS, *((name,) for name in _TABLES)], "CelebA")
        if len(choice) == 1:
            image, label, attribute, split = _TABLES[choice[0]]
            table = read_csv(folder / choice[0], (image, label, attribute, split))
            table.codes(split, SPLITS)
            splits = table.columns[split]
        else:
            image, label, attribute = "image_id", "Blond_Hair", "Male"
            table, partition = _attributes(folder / choice[0]), _partition(folder / choice[1])
            _check_same_images(table, partition)
            partition.codes("partition", SPLITS)
            splits = partition.columns["partition"]
        columns = {
            "file": with_slashes(table, image).columns[image],
            "class": in_words(table, label, self.classes),
            "attribute": in_words(table, attribute, ("female", "male")),
            "split": splits,
        }
        place = next((folder / one for one in _IMAGE_PLACES if (folder / one).is_dir()), folder / _IMAGES)
        images = ImageList(self.name, table.path, place, tuple(columns["file"]), tuple(table.lines))
        return Labels(images, replace(table, columns=columns))


def _attributes(path: Path) -> Table:
    wanted = ("image_id", "Blond_Hair", "Male")
    return read_csv(path, wanted) if _has_commas(path) else read_spaced(path, wanted, key="image_id")


def _partition(path: Path) -> Table:
    columns: Sequence[str] = ("image_id", "partition")
    return read_csv(path, columns) if _has_commas(path) else read_spaced(path, columns, columns)


def _has_commas(path: Path) -> bool:
    """Return whether a table is separated by commas, whatever its ending says."""
    return b"," in file_bytes(path)[:1000].split(b"\n")[0]


def _check_same_images(attributes: Table, partition: Table) -> None:
    """Raise DataError unless both files name the same images in the same order."""
    ours, theirs = attributes.columns["image_id"], partition.columns["image_id"]
    for row, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            raise partition.error(row, "image_id", f"{one!r} as in {attributes.path}, line {attributes.lines[row]}")
    if len(ours) != len(theirs):
        raise DataError(f"{partition.path} has {len(theirs)} rows, {attributes.path} has {len(ours)}")
