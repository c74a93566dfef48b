"""A tiny CIFAR-10: squares of a colour for each class, so that object and place can be told by a linear model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

COLOURS = {
    "automobile": (200, 40, 40),
    "frog": (40, 200, 40),
    "bird": (160, 120, 30),
    "deer": (60, 60, 60),
    "ship": (40, 40, 200),
}
COUNTS = {"train": (40, 6, 4, 20), "validation": (8, 8, 6, 6), "test": (9, 9, 7, 7)}


def write_pool(root: Path, train: int = 80, test: int = 6) -> Path:
    """Write `root`/cifar10 with so many photographs of each class."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for name, colour in COLOURS.items():
            folder = root / "cifar10" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(np.array(colour) + rng.normal(0, 25, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:04d}.png")
    return root


class Pooled(nn.Module):
    """Mean colours of 7 x 7 parts of an image: a network without weights, 147 features."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images, 7).flatten(1)


def pooled() -> nn.Module:
    return Pooled()


def pooled_reduced() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Pooled(), nn.Linear(147, 5))
