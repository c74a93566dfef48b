"""LeNet-5."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from steelyard.experiments.models._convnet import ConvNet, at_least

__all__ = ["LeNet5"]


@dataclass(frozen=True)
class LeNet5(ConvNet):
    """LeNet-5 with ReLU and max pooling, 6 and 16 filters of 5 x 5, then 120 and 84 units: h has 84 features.

    Images of 28 x 28 are padded by 2, as MNIST's are; others are taken as they are, at least 16 x 16.

    References:
        Y. LeCun et al., Gradient-based learning applied to document recognition, 1998.
    """

    name: Literal["lenet5"] = "lenet5"

    def _net(self, shape: tuple[int, ...], width: int) -> nn.Module:
        at_least("lenet5", shape, 16)
        padding = 2 if shape[1:] == (28, 28) else 0
        rest = [((side + 2 * padding - 4) // 2 - 4) // 2 for side in shape[1:]]
        return nn.Sequential(
            *(nn.Conv2d(shape[0], 6, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(16 * rest[0] * rest[1], 120), nn.ReLU()),
            *(nn.Linear(120, 84), nn.ReLU()),
            nn.Linear(84, width),
        )
