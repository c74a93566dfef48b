"""Samples whose images stay on disk, and the data sets that are made of images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from steelyard._support import _check
from steelyard.bilevel.streamed import Streamed
from steelyard.experiments.data.features import features
from steelyard.experiments.data.images import ImageList, decode
from steelyard.experiments.data.splits import Splits
from steelyard.experiments.data.transforms import SIZE, evaluation_transform, training_transform
from steelyard.experiments.models.backbone import Backbone

__all__ = ["ImageProblem", "Photographs"]

_CHUNK = 64  # images that are in memory at once while a model is evaluated


@dataclass(frozen=True)
class Photographs(Streamed):
    """Samples whose images are files, decoded as they are asked for.

    Attributes:
        images: the data set.
        augment: whether `stream` augments.
    """

    images: ImageList = field(kw_only=True)
    augment: bool = field(kw_only=True)

    @classmethod
    def of_images(cls, images: ImageList, rows: Int[Tensor, " n"], *, augment: bool, workers: int) -> Photographs:
        """Return the samples at `rows` of `images`."""
        groups, shape = images.groups, (len(rows), 3, SIZE, SIZE)
        return cls(
            torch.empty(shape, device="meta"),
            groups.targets[rows],
            torch.arange(len(rows)),
            groups.attribute[rows],
            groups.ids[rows],
            images=images,
            rows=rows,
            augment=augment,
            chunk=_CHUNK,
            workers=workers,
        )

    def _load(
        self, rows: Iterator[Tensor], workers: int, training: bool = False, seed: int = 0, first: int = 0
    ) -> Iterator[Tensor]:
        transform = (training_transform if training and self.augment else evaluation_transform)(self.images.name)
        for found in decode(self.images, rows, transform, workers=workers, seed=seed, first=first):
            # A rank may have none of a batch's images; only here is their shape known then.
            yield found if len(found) else found.new_empty(0, *self.inputs.shape[1:])


@dataclass(frozen=True)
class ImageProblem(ABC):
    """A published data set of images with groups.

    Attributes:
        inputs: what a sample is. "features": what the frozen `backbone` makes of the image, ``(d,)``, computed once and
            kept on disk; every method runs on them. "images": the image itself, ``(3, 224, 224)``, decoded for each
            batch, for methods that train on batches.
        backbone: the network that makes the features.
        augment: with "images", whether training crops and flips at random (`transforms.training_transform`).
        workers: with "images", processes that decode; 0 decodes in the main one.
        per_group: with a number above 0 only that many images of each group in each split are used, to try things out.
    """

    inputs: Literal["features", "images"] = "features"
    backbone: Backbone = field(default_factory=Backbone)
    augment: bool = False
    workers: int = 2
    per_group: int = 0

    def __post_init__(self) -> None:
        _check.integer("workers", self.workers, low=0)
        _check.integer("per_group", self.per_group, low=0)
        if self.augment and self.inputs == "features":
            raise ValueError("augment draws another image each time: it needs inputs = 'images', features are kept")

    @abstractmethod
    def read(self, root: Path | None) -> ImageList:
        """Return the images and groups that the metadata say; no image is opened or looked for.

        Raises:
            DataError: not there, or a file does not read as published.
        """

    def load(self, seed: int, root: Path | None = None, download: bool = False) -> Splits:
        """Return the published splits.

        Args:
            seed: not used: the splits are published.
            root: the data root; required.
            download: let torchvision download the backbone's weights. The images are not downloaded.

        Raises:
            DataError: data or weights missing or damaged; see `ImageList.check` and `features`.
        """
        images = self.read(root)
        if self.per_group:
            images = images.few(self.per_group)
        images.check()
        if self.inputs == "features":
            inputs = features(images, self.backbone, evaluation_transform(images.name), download=download)
            return images.groups.splits(images.name, inputs, images.parts, images.table)
        train, validation, test = (
            Photographs.of_images(images, rows, augment=self.augment, workers=self.workers) for rows in images.parts
        )
        return images.groups.of(images.name, train, validation, test)
