"""The image transforms of the papers on group shifts, in torchvision's second version."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from steelyard.experiments.data.images import ImageSet, Transform

__all__ = ["SIZE", "evaluation_transform", "load_v2", "training_transform"]

SIZE = 224  # pixels, the width and the height that both transforms give
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


def evaluation_transform(name: ImageSet) -> Transform:
    """Return the deterministic transform: PIL image -> ``(3, 224, 224)``, standardised as for ImageNet.

    Waterbirds: to 256 x 256 whatever the shape, then the 224 x 224 in the centre. CelebA (178 x 218): the 178 x 178 in
    the centre, to 224 x 224. As published with Group DRO (Sagawa et al. 2020), which trains with them too.
    """
    v2 = load_v2()
    shape = {
        "waterbirds": [v2.Resize((256, 256)), v2.CenterCrop(SIZE)],
        "celeba": [v2.CenterCrop(178), v2.Resize((SIZE, SIZE))],
    }[name]
    return v2.Compose([*shape, *_finish()])


def training_transform(name: ImageSet) -> Transform:
    """Return the transform with augmentation: a crop of 0.7 to 1 of the image to 224 x 224, and a flip half the time.

    As published with Group DRO, for both data sets. It draws from torch's generator, which `images.decode`
    seeds for each image.
    """
    v2 = load_v2()
    return v2.Compose([v2.RandomResizedCrop(SIZE, scale=(0.7, 1.0)), v2.RandomHorizontalFlip(), *_finish()])


def _finish() -> list[torch.nn.Module]:
    v2 = load_v2()
    return [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(_MEAN, _STD)]


def load_v2() -> Any:
    """Return `torchvision.transforms.v2`, imported beside whatever torch is here."""
    importlib.import_module("steelyard._support._torchvision")  # first: see there
    return importlib.import_module("torchvision.transforms.v2")
