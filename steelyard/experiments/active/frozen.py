"""What a net of active learning sees: the images themselves, or features of a frozen pretrained network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from steelyard._support import _check
from steelyard.bilevel.batch import Batch
from steelyard.experiments.data.features import kept
from steelyard.experiments.data.splits import Splits
from steelyard.experiments.models.backbone import Backbone

__all__ = ["Encoder", "Frozen", "Pixels"]


@dataclass(frozen=True)
class Pixels:
    """The images as they are."""

    name: Literal["pixels"] = "pixels"
    code: ClassVar[tuple[str, ...]] = ()

    def apply(self, splits: Splits, cache: Path | None = None) -> Splits:
        """Return the splits as they are."""
        return splits


@dataclass(frozen=True)
class Frozen:
    """Features of a frozen network, of the noise too. Images that are alike are computed once; all are kept on disk.

    Attributes:
        backbone: the network and its weights.
        size: the width and height that images are brought to (bilinear) before it sees them.
        mean, std: what is subtracted from the channels, which are in [0, 1], and what they are divided by.
    """

    name: Literal["frozen"] = "frozen"
    backbone: Backbone = field(default_factory=Backbone)
    size: int = 64
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        _check.integer("size", self.size, low=1)
        for mean, std in zip(self.mean, self.std, strict=True):
            _check.in_range("mean", mean)
            _check.in_range("std", std, low=0.0, open_low=True)

    @property
    def code(self) -> tuple[str, ...]:
        """The functions, "module:function", that are imported and called."""
        return (self.backbone.model,) if self.backbone.is_own else ()

    def apply(self, splits: Splits, cache: Path | None = None) -> Splits:
        """Return the splits with features ``(n, d)`` instead of images ``(n, 3, h, w)``.

        Args:
            splits: with the noise in them.
            cache: the folder where features are kept; see `steelyard.experiments.data.features.features`.

        Raises:
            ValueError: inputs that are no images of three channels.
            DataError: see `Backbone.build`, or the cache cannot be written to.
        """
        train, validation, test = (
            self._encoded(part, cache) for part in (splits.train, splits.validation, splits.test)
        )
        return replace(splits, train=train, validation=validation, test=test)

    def _encoded(self, data: Batch, cache: Path | None) -> Batch:
        if data.inputs.ndim != 4 or data.inputs.shape[1] != 3:
            raise ValueError(f"a frozen network takes images (n, 3, h, w), got inputs {tuple(data.inputs.shape)}")
        digests = [hashlib.sha256(image.numpy().tobytes()).digest() for image in data.inputs.cpu().contiguous()]
        place = {digest: number for number, digest in enumerate(dict.fromkeys(digests))}
        first = {digest: row for row, digest in reversed(list(enumerate(digests)))}
        different = data.inputs[[first[digest] for digest in place]]
        found = kept("pool", self.backbone, self._key(place), len(place), lambda: self._computed(different), cache)
        return replace(data, inputs=found.to(data.inputs)[[place[digest] for digest in digests]])

    def _computed(self, images: Tensor) -> Float[Tensor, "n d"]:
        network, found = self.backbone.build().to(self.backbone.device), []
        with torch.no_grad():
            for part in images.split(self.backbone.batch_size):
                found.append(network(self._seen(part.to(self.backbone.device))).float().cpu())
        return torch.cat(found)

    def _seen(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).to(images)[:, None, None] for values in (self.mean, self.std))
        shown = F.interpolate(images, (self.size, self.size), mode="bilinear", align_corners=False)
        return (shown - mean) / std

    def _key(self, digests: Iterable[bytes]) -> str:
        settings = {"size": self.size, "mean": self.mean, "std": self.std, "weights": self.backbone.identity()}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for one in digests:
            digest.update(one)
        return digest.hexdigest()


Encoder: TypeAlias = Pixels | Frozen
