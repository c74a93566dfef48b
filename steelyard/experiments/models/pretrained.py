"""Pretrained residual networks of torchvision's, trained as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from steelyard.experiments.models.backbone import Architecture, Backbone
from steelyard.experiments.models.heads import HEADS, HeadName

__all__ = ["PretrainedResNet"]


@dataclass(frozen=True)
class PretrainedResNet:
    """A residual network for images of three channels, all of it trained, from pretrained weights.

    The last layer is new, drawn from the seed as torch draws linear layers.

    Attributes:
        architecture: which of torchvision's.
        weights: the name of torchvision's weights, or a file; see `Backbone`.
        head: how the outputs are read.
    """

    name: Literal["pretrained_resnet"] = "pretrained_resnet"
    architecture: Architecture = "resnet50"
    weights: str = "IMAGENET1K_V1"
    head: HeadName = "softmax"

    def __post_init__(self) -> None:
        self.backbone  # noqa: B018  refuses what it cannot be

    @property
    def backbone(self) -> Backbone:
        """The network and its weights."""
        return Backbone(self.architecture, self.weights)

    def build(self, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
        """Return the net for images of `shape` (3, h, w).

        Raises:
            ValueError: the inputs are no such images.
            DataError: the weights are not on this machine, or damaged; see `Backbone.build`.
        """
        if len(shape) != 3 or shape[0] != 3:
            raise ValueError(f"the model 'pretrained_resnet' takes images (3, h, w), the inputs are {shape}")
        generator = torch.Generator().manual_seed(seed)

        def last(features: int) -> nn.Linear:
            layer = nn.utils.skip_init(nn.Linear, features, HEADS[self.head].width(classes))
            for parameter in (layer.weight, layer.bias):
                nn.init.uniform_(parameter, -(features**-0.5), features**-0.5, generator=generator)
            return layer

        return self.backbone.network(last)
