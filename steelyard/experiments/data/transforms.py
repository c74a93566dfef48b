"""How images become tensors: the transforms of the papers on group shifts, and settings for one's own."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

import torch

from steelyard._support import _check
from steelyard.experiments.data.images import Transform

__all__ = ["CELEBA", "WATERBIRDS", "Framing", "evaluation_transform", "load_v2", "training_transform"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


@dataclass(frozen=True)
class Framing:
    """What of an image is seen, at which size and scale.

    Attributes:
        shape: "crop": the shorter side to `size`, then the square in the centre. "squash": to `size` x `size` whatever
            the shape. "waterbirds", "celeba": see `evaluation_transform`.
        size: width and height, pixels.
        mean, std: what is subtracted from the channels, which are in [0, 1], and what they are divided by.
    """

    shape: Literal["crop", "squash", "waterbirds", "celeba"] = "crop"
    size: int = 224
    mean: tuple[float, float, float] = _MEAN
    std: tuple[float, float, float] = _STD

    def __post_init__(self) -> None:
        _check.integer("size", self.size, low=1, high=_LARGEST)
        for mean in self.mean:
            _check.in_range("mean", mean, low=-_MOST, high=_MOST)
        for std in self.std:
            _check.in_range("std", std, low=0.0, high=_MOST, open_low=True)


_LARGEST, _MOST = 4096, 1e6
WATERBIRDS, CELEBA = Framing("waterbirds"), Framing("celeba")


def evaluation_transform(framing: Framing) -> Transform:
    """Return the deterministic transform: PIL image -> ``(3, size, size)``, standardised by the channels.

    "waterbirds": to 256 x 256 whatever the shape, then the 224 x 224 in the centre. "celeba" (178 x 218): the 178 x 178
    in the centre, to 224 x 224. As published with Group DRO (Sagawa et al. 2020), which trains with them too.
    """
    v2, size = load_v2(), framing.size
    shape = {
        "crop": lambda: [v2.Resize(size), v2.CenterCrop(size)],
        "squash": lambda: [v2.Resize((size, size))],
        "waterbirds": lambda: [v2.Resize((256, 256)), v2.CenterCrop(size)],
        "celeba": lambda: [v2.CenterCrop(178), v2.Resize((size, size))],
    }[framing.shape]
    return v2.Compose([*shape(), *_finish(framing)])


def training_transform(framing: Framing) -> Transform:
    """Return the transform with augmentation: a crop of 0.7 to 1 of the image to the size, and a flip half the time.

    As published with Group DRO, for both data sets. It draws from torch's generator, which `images.decode`
    seeds for each image.
    """
    v2 = load_v2()
    crop = v2.RandomResizedCrop(framing.size, scale=(0.7, 1.0))
    return v2.Compose([crop, v2.RandomHorizontalFlip(), *_finish(framing)])


def _finish(framing: Framing) -> list[torch.nn.Module]:
    v2 = load_v2()
    scale = v2.Normalize(framing.mean, framing.std)
    return [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), scale]


def load_v2() -> Any:
    """Return `torchvision.transforms.v2`, imported beside whatever torch is here."""
    importlib.import_module("steelyard._support._torchvision")  # first: see there
    return importlib.import_module("torchvision.transforms.v2")
