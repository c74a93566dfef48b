"""The sets on disk: made where they are missing, with their features, and read as the recipes read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from steelyard._support import _check
from steelyard.experiments.data import CelebA, Splits, Waterbirds
from steelyard.experiments.models.backbone import Backbone
from studies.photographs.composition import PRESETS, read_pool
from studies.photographs.features import FILE, REDUCED, prepare
from studies.photographs.layouts import TABLES, write_celeba, write_flipped, write_waterbirds

__all__ = ["Sets"]


@dataclass(frozen=True)
class Sets:
    """A folder of sets.

    Attributes:
        folder: they lie in FOLDER/NAME/SEED, those with flipped labels in FOLDER/NAME_flipped/SEED.
        name: of `composition.PRESETS`.
        share: of the training labels that are flipped.
        data_root: where CIFAR-10's photographs lie.
    """

    folder: Path
    name: str = "waterbirds"
    share: float = 0.0
    data_root: Path | None = None

    def __post_init__(self) -> None:
        _check.choice("name", self.name, PRESETS)
        _check.in_range("share", self.share, low=0.0, high=1.0)
        if self.share and self.name == "celeba":
            raise ValueError("share flips labels of Waterbirds' layout; take name = 'waterbirds' or 'hard'")

    def root(self, seed: int) -> Path:
        """Return the data root of a set."""
        flipped = f"_flipped{round(100 * self.share)}" if self.share else ""
        return self.folder / f"{self.name}{flipped}" / str(seed)

    def make(self, seed: int, told: Callable[[str], None] = lambda said: None) -> Path:
        """Write the set if it is not there, and its features; return its root.

        Raises:
            DataError: the photographs are not there, or too few.
        """
        root = self.root(seed)
        if not (root / TABLES[self.name]).is_file():
            told(f"{root}: images")
            self._write(root, seed)
        if not (root / FILE).is_file():
            told(f"{root}: features")
            prepare(root, self._reader(root))
        return root

    def _write(self, root: Path, seed: int) -> None:
        if self.share:
            plain = Sets(self.folder, self.name, 0.0, self.data_root).make(seed)
            write_flipped(plain, root, self.share, seed)
            return
        composition = PRESETS[self.name]
        pool = read_pool(self.data_root, (*composition.objects, *composition.places))
        (write_celeba if self.name == "celeba" else write_waterbirds)(root, composition, pool, seed)

    def load(self, seed: int) -> Splits:
        """Return the splits, inputs the features on the principal axes; DataError if they are not there."""
        return _loaded(self, seed)

    def _reader(self, root: Path) -> Waterbirds | CelebA:
        backbone = Backbone(REDUCED, str(root / FILE), workers=0)
        return CelebA(backbone=backbone) if self.name == "celeba" else Waterbirds(backbone=backbone)


@lru_cache(maxsize=8)
def _loaded(sets: Sets, seed: int) -> Splits:
    root = sets.root(seed)
    return sets._reader(root).load(seed, root)
