"""Samples whose images stay on disk, and what a sample of an image data set is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from steelyard._support import _check
from steelyard.bilevel.streamed import Streamed
from steelyard.experiments.data.features import features
from steelyard.experiments.data.images import ImageList, decode
from steelyard.experiments.data.labelled import Gather
from steelyard.experiments.data.transforms import CELEBA, WATERBIRDS, Framing, evaluation_transform, training_transform
from steelyard.experiments.models.backbone import Backbone

__all__ = ["ImageInputs", "Photographs"]

_CHUNK = 64  # images that are in memory at once while a model is evaluated


@dataclass(frozen=True)
class Photographs(Streamed):
    """Samples whose images are files, decoded as they are asked for.

    Attributes:
        images: the data set.
        framing: what of an image is seen.
        augment: whether `stream` augments.
    """

    images: ImageList = field(kw_only=True)
    framing: Framing = field(kw_only=True)
    augment: bool = field(kw_only=True)

    @classmethod
    def of_images(
        cls,
        images: ImageList,
        framing: Framing,
        augment: bool,
        workers: int,
        rows: Int[Tensor, " n"],
        targets: Shaped[Tensor, " n"],
        environment: Int[Tensor, " n"] | None,
        group: Int[Tensor, " n"] | None,
    ) -> Photographs:
        """Return the samples at `rows` of `images`, whose labels are given."""
        return cls(
            torch.empty((len(rows), 3, framing.size, framing.size), device="meta"),
            targets,
            torch.arange(len(rows)),
            environment,
            group,
            images=images,
            framing=framing,
            rows=rows,
            augment=augment,
            chunk=_CHUNK,
            workers=workers,
        )

    def fingerprint(self) -> str:
        """Return what tells these images from others: `ImageList.fingerprint`, and the framing if it is one's own."""
        found = self.images.fingerprint(self.rows.tolist())
        return found if self.framing in (CELEBA, WATERBIRDS) else f"{found} {self.framing!r}"

    def _load(
        self, rows: Iterator[Tensor], workers: int, training: bool = False, seed: int = 0, first: int = 0
    ) -> Iterator[Tensor]:
        transform = (training_transform if training and self.augment else evaluation_transform)(self.framing)
        for found in decode(self.images, rows, transform, workers=workers, seed=seed, first=first):
            # A rank may have none of a batch's images; only here is their shape known then.
            yield found if len(found) else found.new_empty(0, *self.inputs.shape[1:])


@dataclass(frozen=True)
class ImageInputs:
    """What a sample of an image data set is.

    Attributes:
        inputs: "features": what the frozen `backbone` makes of the image, ``(d,)``, computed once and kept on disk;
            every method runs on them. "images": the image itself, ``(3, size, size)``, decoded for each batch, for
            methods that train on batches.
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

    @property
    def on_disk(self) -> bool:
        """Whether inputs come batch by batch."""
        return self.inputs == "images"

    @property
    def code(self) -> tuple[str, ...]:
        """The user's functions that loading calls, "module:function"."""
        return (self.backbone.model,) if self.inputs == "features" and self.backbone.is_own else ()

    def samples(self, images: ImageList, framing: Framing, download: bool) -> Tensor | Gather:
        """Return the features of all images, or what makes samples of some of them.

        Raises:
            DataError: weights missing or damaged; see `features`.
        """
        if self.inputs == "features":
            return features(images, self.backbone, evaluation_transform(framing), download=download)
        return partial(Photographs.of_images, images, framing, self.augment, self.workers)
