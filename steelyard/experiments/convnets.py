"""Convolutional nets for small images: LeNet-5, PreActResNet-18, VGG-8 and VGG-16.

One convention for all nets here and elsewhere: the last layer is the only place where a class's logit is made, an
`nn.Linear`, and what goes into it is the embedding h.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from steelyard import _check
from steelyard.experiments.models import HEADS, HeadName

__all__ = ["VGG8", "VGG16", "LeNet5", "PreActResNet18"]


@dataclass(frozen=True)
class _ConvNet:
    """What all of them share: the head, and how parameters are drawn."""

    head: HeadName = "softmax"

    def build(self, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
        """Return the net for inputs of `shape` (channels, h, w); the same `seed` gives the same parameters.

        Raises:
            ValueError: inputs that are no images, or smaller than the net can take.
        """
        if len(shape) != 3:
            raise ValueError(f"a convolutional net needs images (channels, h, w), got inputs of shape {shape}")
        with torch.random.fork_rng([]):  # torch's own initialisation takes no generator
            torch.default_generator.manual_seed(seed)
            return self._net(shape, HEADS[self.head].width(classes))

    def _net(self, shape: tuple[int, ...], width: int) -> nn.Module:
        raise NotImplementedError


def _at_least(name: str, shape: tuple[int, ...], side: int) -> None:
    if min(shape[1:]) < side:
        raise ValueError(f"{name} needs images of at least {side} x {side}, got {shape[1]} x {shape[2]}")


@dataclass(frozen=True)
class LeNet5(_ConvNet):
    """LeNet-5 with ReLU and max pooling, 6 and 16 filters of 5 x 5, then 120 and 84 units: h has 84 features.

    Images of 28 x 28 are padded by 2, as MNIST's are; others are taken as they are, at least 16 x 16.

    References:
        Y. LeCun et al., Gradient-based learning applied to document recognition, 1998.
    """

    name: Literal["lenet5"] = "lenet5"

    def _net(self, shape: tuple[int, ...], width: int) -> nn.Module:
        padding = 2 if shape[1:] == (28, 28) else 0
        _at_least("lenet5", shape, 16)
        rest = [((side + 2 * padding - 4) // 2 - 4) // 2 for side in shape[1:]]
        return nn.Sequential(
            *(nn.Conv2d(shape[0], 6, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(16 * rest[0] * rest[1], 120), nn.ReLU()),
            *(nn.Linear(120, 84), nn.ReLU()),
            nn.Linear(84, width),
        )


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
class PreActResNet18(_ConvNet):
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


@dataclass(frozen=True)
class _VGG(_ConvNet):
    """3 x 3 convolutions with BatchNorm and ReLU, max pooling between the stages; the mean over what is left is h."""

    stages: ClassVar[tuple[tuple[int, ...], ...]]

    def _net(self, shape: tuple[int, ...], width: int) -> nn.Module:
        _at_least(type(self).__name__, shape, 2 ** len(self.stages))
        layers: list[nn.Module] = []
        channels = shape[0]
        for stage in self.stages:
            for outputs in stage:
                layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
                channels = outputs
            layers.append(nn.MaxPool2d(2))
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, width))


@dataclass(frozen=True)
class VGG16(_VGG):
    """VGG-16 for small images: 13 convolutions and one linear layer, h has 512 features.

    References:
        K. Simonyan, A. Zisserman, Very deep convolutional networks for large-scale image recognition, 2015; with
        BatchNorm and one linear layer, as is usual for images of 32 x 32.
    """

    stages: ClassVar[tuple[tuple[int, ...], ...]] = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)
    name: Literal["vgg16"] = "vgg16"


@dataclass(frozen=True)
class VGG8(_VGG):
    """A VGG of seven convolutions and one linear layer; the depths of its stages are ours, h has 512 features."""

    stages: ClassVar[tuple[tuple[int, ...], ...]] = ((64,), (128,), (256,) * 2, (512,) * 2, (512,))
    name: Literal["vgg8"] = "vgg8"
