"""The sets' whole images, small, for a net that is trained from its start: no frozen features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

from steelyard.bilevel.batch import Batch
from steelyard.experiments.data import Splits, Waterbirds
from steelyard.experiments.data.images import ImageList, Transform, decode
from steelyard.experiments.data.transforms import WATERBIRDS, load_v2
from studies.photographs.composition import PRESETS
from studies.photographs.sets import Sets

__all__ = ["SIDE", "Images"]

SIDE = 32
"""Pixels: a third of what a net sees of a set, and what a photograph of CIFAR-10 has; an object then has 19."""

_CHUNK = 256


@dataclass(frozen=True)
class Images:
    """The images of `sets` without their rim, ``(n, 3, SIDE, SIDE)`` in memory, standardised by ImageNet's channels.

    Attributes:
        sets: in Waterbirds' layout.
        name: of tables.
    """

    sets: Sets
    name: str = "images"

    @property
    def case(self) -> str:
        """The name of folders and tables: of the set, too, where it is not the plain one."""
        return self.name + self.sets.case.removeprefix(self.sets.name)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The groups' sizes in training before any label is flipped."""
        return self.sets.sizes

    def make(self, seed: int, told: Callable[[str], None] = lambda said: None) -> None:
        """Write the images if they are not there; DataError: the photographs are not there, or too few."""
        self.sets.write(seed, told)

    def options(self, seed: int) -> tuple[str, ...]:
        """Return what is set in a recipe of Waterbirds."""
        return ("data.inputs=images",)

    def load(self, seed: int) -> Splits:
        """Return the splits; DataError if the images are not there."""
        return _loaded(self, seed)


@lru_cache(maxsize=2)
def _loaded(images: Images, seed: int) -> Splits:
    labels = Waterbirds().read(images.sets.root(seed))
    labels.images.check()
    columns = labels.table.columns
    classes, places = Waterbirds.classes, ("land", "water")
    target = torch.tensor([classes.index(one) for one in columns["class"]])
    place = torch.tensor([places.index(one) for one in columns["attribute"]])
    composition = PRESETS[images.sets.name]
    transform = _halved(composition.size[0])

    def part(split: str) -> Batch:
        rows = torch.tensor([row for row, one in enumerate(columns["split"]) if one == split])
        seen = _pixels(labels.images, rows, transform)
        return Batch.of(seen, target[rows], environment=place[rows], group=2 * target[rows] + place[rows])

    names = tuple(f"{one} on {where}" for one in composition.objects for where in composition.places)
    return Splits(images.case, part("0"), part("1"), part("2"), composition.objects, composition.places, groups=names)


def _pixels(images: ImageList, rows: torch.Tensor, transform: Transform) -> torch.Tensor:
    return torch.cat(list(decode(images, rows.split(_CHUNK), transform)))


def _halved(width: int) -> Transform:
    """Return the transform: the `width` x `width` in the centre, every square of pixels averaged to SIDE x SIDE."""
    v2 = load_v2()
    pixels = [v2.CenterCrop(width), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    standardised: Transform = v2.Compose(
        [*pixels, torch.nn.AdaptiveAvgPool2d(SIDE), v2.Normalize(WATERBIRDS.mean, WATERBIRDS.std)]
    )
    return standardised
