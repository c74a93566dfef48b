"""ResNet-18 for small images."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from steelyard._support import _check
from steelyard.experiments.models.heads import HEADS, HeadName

__all__ = ["ResNet18"]


@dataclass(frozen=True)
class ResNet18:
    """ResNet-18 (He et al. 2016) for images near 32 x 32: a 3 x 3 stem of stride 1 and no max-pooling.

    Four stages of two of torchvision's basic blocks, with `width` times 1, 2, 4 and 8 channels, the last three of
    stride 2, then the mean over the picture and a linear layer; any height and width. Convolutions begin as in
    torchvision (He's normal, by the fan-out).

    Attributes:
        width: channels of the first stage: 64 is the standard net, 16 the narrow one (16, 32, 64, 128).
        head: how the outputs are read.
    """

    name: Literal["resnet18"] = "resnet18"
    width: int = 64
    head: HeadName = "softmax"

    def __post_init__(self) -> None:
        _check.integer("width", self.width, low=1)

    def build(self, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
        """Return the net for inputs of `shape` (channels, h, w); the same `seed` gives the same parameters."""
        if len(shape) != 3:
            raise ValueError(f"the model 'resnet18' takes images (channels, h, w), the inputs are {shape}")
        with torch.random.fork_rng(devices=[]):  # torchvision's blocks draw from the global generator
            torch.default_generator.manual_seed(seed)
            layers: OrderedDict[str, nn.Module] = OrderedDict(stem=_stem(shape[0], self.width))
            channels = self.width
            for stage in range(4):
                wider = self.width * 2**stage
                layers[f"stage{stage + 1}"] = _stage(channels, wider, stride=1 if stage == 0 else 2)
                channels = wider
            layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
            layers["linear"] = nn.Linear(channels, HEADS[self.head].width(classes))
            net = nn.Sequential(layers)
            for module in net.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        return net


def _stem(channels: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def _stage(channels: int, wider: int, stride: int) -> nn.Module:
    """Two basic blocks, the first of which changes the number of channels and the size of the picture."""
    from steelyard._support._torchvision import torchvision  # a second's import, which no other model needs

    shortcut = None
    if stride > 1:
        shortcut = nn.Sequential(nn.Conv2d(channels, wider, 1, stride, bias=False), nn.BatchNorm2d(wider))
    block = torchvision.models.resnet.BasicBlock
    return nn.Sequential(block(channels, wider, stride, shortcut), block(wider, wider))
