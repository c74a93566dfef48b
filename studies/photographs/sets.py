"""The sets on disk: made where they are missing, with their features, and read as the recipes read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol, runtime_checkable

from steelyard._support import _check
from steelyard._support._errors import UserError
from steelyard.experiments.data import CelebA, Splits, Waterbirds
from steelyard.experiments.models.backbone import Backbone
from steelyard.experiments.runs.recipe import load_recipe
from studies.photographs.composition import PRESETS, read_pool
from studies.photographs.features import FILE, REDUCED, options, prepare
from studies.photographs.layouts import TABLES, write_celeba, write_flipped, write_waterbirds
from studies.photographs.rows import TABLES as TABULAR

__all__ = ["Sets", "Source", "Tabular", "shares_of", "source", "tables_of"]

UNFLIPPED = ("celeba", *TABULAR)


@runtime_checkable
class Source(Protocol):
    """What rows are trained on."""

    @property
    def name(self) -> str:
        """The name of the set."""

    @property
    def case(self) -> str:
        """The name of folders and tables."""

    @property
    def sizes(self) -> tuple[int, ...] | None:
        """The groups' sizes in training, labels as drawn; None: those that each run's figures are adjusted by."""

    def make(self, seed: int, told: Callable[[str], None] = lambda said: None) -> None:
        """Make what is missing of a data seed."""

    def options(self, seed: int) -> tuple[str, ...]:
        """Return what is set in a recipe for a data seed."""

    def load(self, seed: int) -> Splits:
        """Return the splits of a data seed."""


def source(folder: Path, name: str, share: float, data_root: Path | None) -> Source:
    """Return the sets of photographs called `name`, or a table of people; see `Sets` for the arguments.

    Raises:
        UserError: flipped labels of what has none.
    """
    if share and name in UNFLIPPED:
        raise UserError(f"--shares: {share:g} flips training labels, which {name} has no table of; take --shares 0")
    return Tabular(name, data_root) if name in TABULAR else Sets(folder, name, share, data_root)


def shares_of(name: str) -> tuple[float, ...]:
    """Return the shares of flipped training labels that `source` has of the set called `name`."""
    return (0.0,) if name in UNFLIPPED else (0.0, 0.2)


def tables_of(name: str) -> Path:
    """Return the folder in which the repository has the tables of the set called `name`."""
    if name in TABULAR:
        return Path("results") / name / "tuned"
    return Path("results/photographs") / ("" if name == "waterbirds" else name)


@dataclass(frozen=True)
class Tabular:
    """Adult or COMPAS, dealt into splits by the data seed, as its recipes read it."""

    name: str
    data_root: Path | None = None
    sizes: tuple[int, ...] | None = None

    @property
    def case(self) -> str:
        """The table's name."""
        return self.name

    def make(self, seed: int, told: Callable[[str], None] = lambda said: None) -> None:
        """Do nothing: the data are there, or `load` says so."""

    def options(self, seed: int) -> tuple[str, ...]:
        """Return nothing: the recipes are as they are."""
        return ()

    def load(self, seed: int) -> Splits:
        """Return the splits; DataError if the data are not there."""
        return _dealt(self, seed)


@lru_cache(maxsize=4)
def _dealt(data: Tabular, seed: int) -> Splits:
    return load_recipe(f"{data.name}/erm").data.load(seed, data.data_root)


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

    @property
    def case(self) -> str:
        """The set's name, and the share of flipped labels."""
        return self.name + (f"_flipped{round(100 * self.share)}" if self.share else "")

    @property
    def sizes(self) -> tuple[int, ...]:
        """The groups' sizes in training before any label is flipped."""
        return PRESETS[self.name].counts["train"]

    def root(self, seed: int) -> Path:
        """Return the data root of a set."""
        return self.folder / self.case / str(seed)

    def options(self, seed: int) -> tuple[str, ...]:
        """Return what is set in a recipe of Waterbirds or CelebA for the set."""
        return options(self.root(seed))

    def make(self, seed: int, told: Callable[[str], None] = lambda said: None) -> None:
        """Write the set if it is not there, and its features.

        Raises:
            DataError: the photographs are not there, or too few.
        """
        root = self.root(seed)
        self.write(seed, told)
        if not (root / FILE).is_file():
            told(f"{root}: features")
            prepare(root, self._reader(root))

    def write(self, seed: int, told: Callable[[str], None] = lambda said: None) -> None:
        """Write the images and their table if they are not there; errors are those of `make`."""
        root = self.root(seed)
        if not (root / TABLES[self.name]).is_file():
            told(f"{root}: images")
            self._write(root, seed)

    def _write(self, root: Path, seed: int) -> None:
        if self.share:
            plain = Sets(self.folder, self.name, 0.0, self.data_root)
            plain.write(seed)
            write_flipped(plain.root(seed), root, self.share, seed)
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
