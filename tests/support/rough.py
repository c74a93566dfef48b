"""A small net whose forward pass float32 is too rough for, its data and an outer loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.bilevel import Batch

__all__ = ["data", "net", "outer"]


def net(bias: bool = False, inplace: bool = False) -> nn.Module:
    """Return several BatchNorms, so that float32's forward pass is rough."""
    layers: list[nn.Module] = []
    for width in (3, 8, 8, 8):
        layers += [nn.Conv2d(width, 8, 3, padding=1, bias=bias), nn.BatchNorm2d(8), nn.ReLU(inplace=inplace)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def data(seed: int) -> Batch:
    """Return 12 images of three classes."""
    generator = torch.Generator().manual_seed(seed)
    return Batch.of(torch.randn(12, 3, 6, 6, generator=generator), torch.arange(12) % 3)


def outer(model: nn.Module) -> Tensor:
    """Return the loss on other images, in the precision of the model."""
    held = data(9)
    return F.cross_entropy(model(held.inputs.to(next(model.parameters()).dtype)), held.targets)
