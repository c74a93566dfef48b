"""ResNet-18 with pre-activation, for small images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from steelyard._support import _check
from steelyard.experiments.models._convnet import ConvNet

__all__ = ["PreActResNet18"]


class _PreActBlock(nn.Module):
    """x + conv(relu(bn(conv(relu(bn(x)))))), the shortcut a 1 x 1 convolution of relu(bn(x)) where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        first = F.relu(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(first)
        return kept + self.conv2(F.relu(self.norm2(self.conv1(first))))


@dataclass(frozen=True)
class PreActResNet18(ConvNet):
    """ResNet-18 with BatchNorm and ReLU before each convolution, a 3 x 3 stem; h has 8 * `width` features.

    Attributes:
        width: channels of the first stage; each of the three others doubles them.

    References:
        K. He et al., Identity mappings in deep residual networks, ECCV 2016.
    """

    name: Literal["preact_resnet18"] = "preact_resnet18"
    width: int = 64

    def __post_init__(self) -> None:
        _check.integer("width", self.width, low=1)

    def _net(self, shape: tuple[int, ...], width: int) -> nn.Module:
        channels = self.width
        layers: list[nn.Module] = [nn.Conv2d(shape[0], channels, 3, padding=1, bias=False)]
        for stage in range(4):
            outputs = self.width * 2**stage
            layers += [_PreActBlock(channels, outputs, 1 if stage == 0 else 2), _PreActBlock(outputs, outputs, 1)]
            channels = outputs
        tail = [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, *tail, nn.Linear(channels, width))
