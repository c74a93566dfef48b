"""VGG-8 and VGG-16 for small images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from steelyard.experiments.models._convnet import ConvNet, at_least

__all__ = ["VGG8", "VGG16"]


@dataclass(frozen=True)
class _VGG(ConvNet):
    """3 x 3 convolutions with BatchNorm and ReLU, max pooling between the stages; the mean over what is left is h."""

    stages: ClassVar[tuple[tuple[int, ...], ...]]

    def _net(self, shape: tuple[int, ...], width: int) -> nn.Module:
        at_least(type(self).__name__, shape, 2 ** len(self.stages))
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
