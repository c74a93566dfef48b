"""Samples whose images stay on disk, and the data sets that are made of images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from steelyard import _check
from steelyard.bilevel.batch import Batch
from steelyard.experiments.data.backbone import Backbone
from steelyard.experiments.data.features import features
from steelyard.experiments.data.images import ImageList, Transform, decode
from steelyard.experiments.data.splits import Splits
from steelyard.experiments.data.transforms import SIZE, evaluation_transform, training_transform

__all__ = ["ImageProblem", "Photographs"]

_CHUNK = 64  # images that are in memory at once while a model is evaluated


@dataclass(frozen=True)
class Photographs(Batch):
    """Samples of which targets, ids, environments and groups are in memory, and the images on disk.

    `inputs` says their shape and holds nothing: a tensor on torch's "meta" device, on which no model computes. The
    images come by `stream`, `chunks` and `take`, on the device of the labels.

    Attributes:
        images: the data set.
        rows: ``(n,)`` where in it these samples are; their own ids are 0 .. n-1.
        augment: whether `stream` augments.
        workers: processes that decode for `stream` and `chunks`.
    """

    images: ImageList = field(kw_only=True)
    rows: Int[Tensor, " n"] = field(kw_only=True)
    augment: bool = field(kw_only=True)
    workers: int = field(kw_only=True)

    def __post_init__(self) -> None:
        """Nothing: `of_images` makes labels that fit."""

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
            workers=workers,
        )

    def stream(self, positions: Iterator[Int[Tensor, " _"]], seed: int, first: int = 0) -> Iterator[Batch]:
        """Yield the samples at each of `positions` as training sees them, decoded ahead by the workers.

        Args:
            positions: of each batch; may be endless.
            seed: of the augmentation.
            first: the number of the first batch in the run, for one that goes on where another stopped.
        """
        transform = (training_transform if self.augment else evaluation_transform)(self.images.name)
        return self._decoded(positions, transform, self.workers, seed, first)

    def chunks(self, size: int | None) -> Iterator[Batch]:
        """Yield the samples in order, as evaluation sees them, in pieces of at most `size` (and at most 64)."""
        pieces = torch.arange(len(self)).split(min(size or _CHUNK, _CHUNK))
        return self._decoded(iter(pieces), evaluation_transform(self.images.name), self.workers)

    def take(self, positions: Tensor) -> Batch:
        """Return the samples at `positions` (ids or a mask) with their images in memory, as evaluation sees them."""
        chosen = torch.arange(len(self))[positions.cpu()]
        return next(self._decoded(iter([chosen]), evaluation_transform(self.images.name), workers=0))

    def to(self, device: torch.device | str) -> Photographs:
        """Return the same samples with the labels on `device`, where the images will come too."""
        assert self.environment is not None  # of_images
        assert self.group is not None
        return replace(
            self,
            targets=self.targets.to(device),
            index=self.index.to(device),
            environment=self.environment.to(device),
            group=self.group.to(device),
        )

    def _decoded(
        self, positions: Iterator[Tensor], transform: Transform, workers: int, seed: int = 0, first: int = 0
    ) -> Iterator[Batch]:
        labels = Batch(self.index, self.targets, self.index, self.environment, self.group)
        waiting: deque[Tensor] = deque()  # the positions that the workers are ahead by

        def rows() -> Iterator[Tensor]:
            for at in positions:
                waiting.append(at)
                yield self.rows[at.cpu()]

        for inputs in decode(self.images, rows(), transform, workers=workers, seed=seed, first=first):
            yield replace(labels.take(waiting.popleft()), inputs=inputs.to(self.index.device))


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
