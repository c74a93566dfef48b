"""Which photograph of an object is put on which photograph of a place: the plan of a set, drawn from a seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch

from steelyard._support import _check
from steelyard._support._random import seed_of
from steelyard._support._text import few
from steelyard.experiments.errors import DataError

__all__ = ["CELEBA", "HARD", "PRESETS", "WATERBIRDS", "Composition", "Photograph", "Pool", "Sample", "read_pool"]

_SPLITS = ("train", "validation", "test")
Pool: TypeAlias = Mapping[str, Mapping[str, Sequence[Path]]]
"""The files of each class, by "train" and "test" and the class's name."""


@dataclass(frozen=True)
class Photograph:
    """A photograph, and whether it is turned left to right."""

    file: Path
    mirrored: bool


@dataclass(frozen=True)
class Sample:
    """An image to be made.

    Attributes:
        split: 0 training, 1 validation, 2 test.
        label: 0 or 1, the object's class.
        place: 0 or 1, the place's class.
        object_, background: the photographs of them.
    """

    split: int
    label: int
    place: int
    object_: Photograph
    background: Photograph


@dataclass(frozen=True)
class Composition:
    """Objects of two classes on places of two classes.

    Training and validation are made of CIFAR-10's training photographs, none of which is used twice; the test of its
    test photographs, which are used over and over: every pass through them is shuffled, every second one mirrored.

    Attributes:
        objects: CIFAR-10's classes that make label 0 and 1.
        places: its classes that make place 0 and 1.
        counts: of each split the samples in the groups ``2 * label + place``.
        scale: the object's side, as a share of the image's width.
        size: the width and height of what is composed, pixels.
        rim: pixels around it in which the place is reflected, for the framing of Waterbirds' recipes cuts away an
            eighth of an image: 96 of 110 are left.
    """

    objects: tuple[str, str] = ("automobile", "frog")
    places: tuple[str, str] = ("deer", "ship")
    counts: Mapping[str, tuple[int, int, int, int]] = None  # type: ignore[assignment]
    scale: float = 0.6
    size: tuple[int, int] = (96, 96)
    rim: int = 7

    def __post_init__(self) -> None:
        if self.counts is None:
            _check.store(self, counts=_WATERBIRDS)
        if len({*self.objects, *self.places}) < 4:
            raise ValueError(f"objects and places must be four classes, got {(*self.objects, *self.places)}")
        _check.in_range("scale", self.scale, low=0.0, high=1.0, open_low=True)
        _check.integer("rim", self.rim, low=0)
        for split in _SPLITS:
            for count in self.counts[split]:
                _check.integer("counts", count, low=1)

    def draw(self, pool: Pool, seed: int) -> list[Sample]:
        """Return the samples of all splits, shuffled within each.

        Args:
            pool: the photographs.
            seed: of all draws.

        Raises:
            DataError: training and validation ask for more photographs of a class than there are.
        """
        generator = torch.Generator().manual_seed(seed_of(seed, 0))
        learned = {one: _once(pool["train"][one], one, generator) for one in (*self.objects, *self.places)}
        measured = {one: _again(pool["test"][one], generator) for one in (*self.objects, *self.places)}
        samples: list[Sample] = []
        for split, name in enumerate(_SPLITS):
            streams = measured if name == "test" else learned
            made = [
                Sample(split, label, place, next(streams[self.objects[label]]), next(streams[self.places[place]]))
                for label in (0, 1)
                for place in (0, 1)
                for _ in range(self.counts[name][2 * label + place])
            ]
            samples += [made[row] for row in torch.randperm(len(made), generator=generator).tolist()]
        return samples

    def passes(self, pool: Pool) -> dict[str, int]:
        """Return how often the test photographs of each class are used at most."""
        counts = self.counts["test"]
        wanted = dict.fromkeys((*self.objects, *self.places), 0)
        for group, count in enumerate(counts):
            wanted[self.objects[group // 2]] += count
            wanted[self.places[group % 2]] += count
        return {one: -(-count // len(pool["test"][one])) for one, count in wanted.items()}


_WATERBIRDS = {  # Sagawa et al. 2020
    "train": (3498, 184, 56, 1057),
    "validation": (467, 466, 133, 133),
    "test": (2255, 2255, 642, 642),
}
_CELEBA = {  # CelebA's shares (in training 71629, 66874, 22880 and 1387 of 162770), of as many as there are photographs
    "train": (1936, 1808, 618, 38),
    "validation": (473, 458, 159, 10),
    "test": (2835, 2187, 720, 52),
}
WATERBIRDS = Composition()
HARD = Composition(objects=("bird", "automobile"), scale=0.75)
CELEBA = Composition(counts=_CELEBA, size=(178, 218), rim=0)
PRESETS: Mapping[str, Composition] = {"waterbirds": WATERBIRDS, "hard": HARD, "celeba": CELEBA}


def read_pool(root: Path | None, classes: Sequence[str]) -> Pool:
    """Return the photographs of these classes in CIFAR-10's image folder, ``cifar10/{train,test}/CLASS/*``.

    Raises:
        DataError: there is no such folder, or none of a class's photographs.
    """
    if root is None:
        raise DataError("the photographs need a data root (--data-root, or STEELYARD_DATA) with cifar10/train/CLASS/*")
    found = {
        split: {one: sorted((root / "cifar10" / split / one).glob("*.[jp][pn]g")) for one in classes}
        for split in ("train", "test")
    }
    missing = [f"cifar10/{split}/{one}" for split, own in found.items() for one, files in own.items() if not files]
    if missing:
        raise DataError(
            f"{root} has no .jpg or .png photographs in {few(missing)}; put CIFAR-10 there as image folders"
        )
    return found


def _once(files: Sequence[Path], name: str, generator: torch.Generator) -> Iterator[Photograph]:
    for row in torch.randperm(len(files), generator=generator).tolist():
        yield Photograph(files[row], False)
    raise DataError(f"the set asks for more than the {len(files)} training photographs of the class {name!r}")


def _again(files: Sequence[Path], generator: torch.Generator) -> Iterator[Photograph]:
    own = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))
    mirrored = False
    while True:
        yield from (Photograph(files[row], mirrored) for row in torch.randperm(len(files), generator=own).tolist())
        mirrored = not mirrored
