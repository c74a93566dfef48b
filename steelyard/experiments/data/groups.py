"""Group problems: a class and an attribute that predicts it, and the splits that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard.bilevel.batch import Batch
from steelyard.experiments.data.splits import Splits
from steelyard.experiments.errors import DataError

__all__ = ["PARTS", "Groups"]

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Groups:
    """The class and the attribute of every sample of a data set.

    The group id is ``class * len(attributes) + attribute`` (Sagawa et al. 2020). The attribute is also the environment:
    samples with one attribute are one environment, in which the class has its own frequency.

    Attributes:
        targets: class ids.
        attribute: attribute ids.
        classes: a name for each class id.
        attributes: a name for each attribute id.
    """

    targets: Int[Tensor, " n"]
    attribute: Int[Tensor, " n"]
    classes: tuple[str, ...]
    attributes: tuple[str, ...]

    @property
    def ids(self) -> Int[Tensor, " n"]:
        """The group of each sample."""
        return self.targets * len(self.attributes) + self.attribute

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each group id."""
        return tuple(f"{c}, {a}" for c in self.classes for a in self.attributes)

    def check(self, parts: Sequence[Int[Tensor, " _"]], source: Path) -> None:
        """Raise DataError unless every group has a sample in each of `parts` (training, validation, test)."""
        for part, positions in zip(PARTS, parts, strict=True):
            counts = torch.bincount(self.ids[positions], minlength=len(self.names)).tolist()
            if 0 in counts:
                table = ", ".join(f"{name}: {count}" for name, count in zip(self.names, counts, strict=True))
                raise DataError(
                    f"{source}: the group {self.names[counts.index(0)]!r} has no sample in the {part} split ({table}); "
                    "its accuracy would not be defined"
                )

    def splits(
        self, name: str, inputs: Float[Tensor, "n *features"], parts: Sequence[Int[Tensor, " _"]], source: Path
    ) -> Splits:
        """Return the `Splits` of `inputs` whose training, validation and test samples stand at `parts`."""
        self.check(parts, source)
        train, validation, test = (
            Batch.of(inputs[at], self.targets[at], environment=self.attribute[at], group=self.ids[at]) for at in parts
        )
        return self.of(name, train, validation, test)

    def of(self, name: str, train: Batch, validation: Batch, test: Batch) -> Splits:
        """Return the `Splits` of samples that have these groups."""
        return Splits(name, train, validation, test, self.classes, self.attributes, groups=self.names)
