"""Waterbirds and CelebA as they are published: where the files are, what must be in them, and how they get in place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from steelyard._support._files import is_link, lock, open_file
from steelyard.experiments.data.archives import ENDINGS, is_archive, unpack
from steelyard.experiments.data.celeba import CelebA
from steelyard.experiments.data.fetching import fetch, name_of
from steelyard.experiments.data.image_presets import ImagePreset, Labels
from steelyard.experiments.data.waterbirds import Waterbirds
from steelyard.experiments.errors import DataError

__all__ = ["OFFICIAL", "Official", "digest_of", "prepare", "verify"]

_GIGABYTE = 1 << 30


@dataclass(frozen=True)
class Official:
    """A published data set.

    Attributes:
        data: what reads it.
        places: where its files are, a line each.
        folders: where its archives and tables may lie below the data root, besides the root itself.
        splits: images in training, validation and test.
        groups: images of each group (class x attribute) in training.
        most_bytes: what an archive, or its files, may take.
        begins: how names of its archives begin.
        md5: published digests of files, by their names (torchvision's, of CelebA).
        archive: what an archive is called whose address does not say.
    """

    data: ImagePreset
    places: tuple[str, ...]
    folders: tuple[str, ...]
    splits: tuple[int, int, int]
    groups: tuple[int, ...]
    most_bytes: int
    archive: str
    begins: tuple[str, ...]
    md5: Mapping[str, str] = field(default_factory=dict)


OFFICIAL: Mapping[str, Official] = {
    "waterbirds": Official(
        Waterbirds(),
        (
            "https://nlp.stanford.edu/data/dro/waterbird_complete95_forest2water2.tar.gz (group_DRO)",
            "https://worksheets.codalab.org/rest/bundles/0x505056d5cdea4e4eaa0e242cbfe2daa4/contents/blob/ (WILDS)",
        ),
        ("waterbirds", "cub/data"),
        (4795, 1199, 5794),
        (3498, 184, 56, 1057),
        4 * _GIGABYTE,
        "waterbirds.tar.gz",
        ("waterbird",),
    ),
    "celeba": Official(
        CelebA(),
        (
            "http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (img_align_celeba.zip, list_attr_celeba.txt, "
            "list_eval_partition.txt)",
            "https://www.kaggle.com/datasets/jessicali9530/celeba-dataset (archive.zip, all in one)",
            "https://worksheets.codalab.org/rest/bundles/0xfe55077f5cd541f985ebf9ec50473293/contents/blob/ (WILDS)",
        ),
        ("celeba", "celebA/data", "CelebA", "celeba-dataset"),
        (162770, 19867, 19962),
        (71629, 66874, 22880, 1387),
        16 * _GIGABYTE,
        "celeba.tar.gz",
        ("celeba", "img_align_celeba", "archive"),
        {
            "img_align_celeba.zip": "00d2c5bc6d35e252742224ab0c1e8fcb",
            "list_attr_celeba.txt": "75e246fa4810816ffd6ee81facbd244c",
            "list_eval_partition.txt": "d32c9cbf5e040fd4025c592c306e6668",
        },
    ),
}
"""The data sets, by the names that recipes call them."""


def prepare(
    official: Official,
    root: Path,
    urls: Sequence[str] = (),
    progress: Callable[[str, int, int], None] = lambda what, done, of: None,
) -> str:
    """Put a published data set in place below `root`, and return what was found there, a sentence.

    What `urls` name is fetched; archives that lie there are unpacked if the data set is not whole without them; then
    all is verified.

    Args:
        official: the data set.
        root: the data root.
        urls: addresses of its files that the user gave; nothing else is fetched.
        progress: called with what is done, how far, and of how much (0: not known).

    Raises:
        DataError: a file is not to be had, damaged, or not the published one; it is not whole. Where nothing is there,
            the message says where the files are.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with lock(root / f".{official.archive}.lock"):
            return _prepared(official, root, urls, progress)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{root} cannot be prepared: {error}") from error


def _prepared(official: Official, root: Path, urls: Sequence[str], progress: Callable[[str, int, int], None]) -> str:
    fetched = []
    for url in urls:
        name = name_of(url, official.archive)
        named = name.endswith(ENDINGS) and name != official.archive
        path = root / (name if named else f"{official.folders[0]}/{name}")
        fetch(url, path, official.most_bytes, lambda done, of, name=name: progress(f"fetching {name}", done, of))  # type: ignore[misc]
        fetched.append(path)
    for path in _known(official, root):
        check_digest(official, path)
    if _complaint(official, root) is None:
        return verify(official, root)
    for archive in [*filter(is_archive, fetched), *(one for one in _archives(official, root) if one not in fetched)]:
        check_digest(official, archive)
        unpack(
            archive,
            archive.parent,
            official.most_bytes,
            lambda files, archive=archive: progress(f"unpacking {archive.name}", files, 0),  # type: ignore[misc]
        )
        if _complaint(official, root) is None:
            break
    return verify(official, root)


def verify(official: Official, root: Path) -> str:
    """Return what lies below `root`, a sentence, if it is the published data set: columns, counts, every image there.

    Raises:
        DataError: what is missing or different, and where the published files are.
    """
    if (complaint := _complaint(official, root)) is not None:
        raise DataError(f"{complaint}. Official files: {'; '.join(official.places)}")
    labels = official.data.read(root)
    return f"{len(labels.images)} images in {labels.images.folder}, with the published splits and groups"


def _complaint(official: Official, root: Path) -> str | None:
    """Return what is wrong with the data set below `root`; None if nothing is."""
    try:
        labels = official.data.read(root)
        labels.images.check()
    except DataError as error:
        return str(error)
    splits, groups = _counts(official, labels)
    if splits != official.splits:
        return (
            f"{labels.table.path} has {_told(splits)} training, validation and test images, published are "
            f"{_told(official.splits)}"
        )
    if groups != official.groups:
        return (
            f"{labels.table.path} has {_told(groups)} training images in its groups, published are "
            f"{_told(official.groups)}"
        )
    return None


def _told(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts))


def _counts(official: Official, labels: Labels) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the images in each split, and in each group of training."""
    columns, classes = labels.table.columns, official.data.classes
    splits = torch.tensor([int(split) for split in columns["split"]])
    attributes = {name: code for code, name in enumerate(sorted(set(columns["attribute"])))}
    groups = torch.tensor(
        [
            2 * classes.index(one) + attributes[other]
            for one, other in zip(columns["class"], columns["attribute"], strict=True)
        ]
    )
    counted = torch.bincount(splits, minlength=3), torch.bincount(groups[splits == 0], minlength=4)
    return tuple(counted[0].tolist()), tuple(counted[1].tolist())


def _places(official: Official, root: Path) -> list[Path]:
    return [root, *(root / folder for folder in official.folders)]


def _archives(official: Official, root: Path) -> list[Path]:
    """Return the archives below `root` that may be the data set's, by their names."""
    found: list[Path] = []
    for place in _places(official, root):
        if place.is_dir() and not is_link(place):
            names = sorted(os.listdir(place))
            found += [
                place / name for name in names if name.lower().startswith(official.begins) and is_archive(place / name)
            ]
    return found


def _known(official: Official, root: Path) -> list[Path]:
    """Return the tables below `root` whose digests are published."""
    names = [name for name in official.md5 if not name.endswith(ENDINGS)]
    return [place / name for place in _places(official, root) for name in names if (place / name).is_file()]


def check_digest(official: Official, path: Path) -> None:
    """Raise DataError if the digest of a file is published and it has another, and it is not of another layout."""
    expected = official.md5.get(path.name)
    if expected is not None and (found := digest_of(path)) != expected:
        raise DataError(
            f"{path} has the MD5 {found}, published is {expected}: it is damaged, or another version; fetch it again"
        )


def digest_of(path: Path) -> str:
    """Return the MD5 of a file, which CelebA's publishers give; DataError where it cannot be read."""
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with open_file(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return digest.hexdigest()
