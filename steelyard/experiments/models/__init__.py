"""Models by name, one family a file: a frozen dataclass of settings with ``build(shape, classes, seed) -> nn.Module``.

Inputs are ``(n, *shape)``, outputs ``(n, width)`` as the model's `head` reads them.
"""

from steelyard.experiments.models.heads import (
    HEADS,
    Head,
    HeadName,
    binary_cross_entropy,
    cross_entropy,
)
from steelyard.experiments.models.mlp import MLP, Logistic
from steelyard.experiments.models.resnet import ResNet18

__all__ = [
    "HEADS",
    "MLP",
    "Head",
    "HeadName",
    "Logistic",
    "Model",
    "ResNet18",
    "binary_cross_entropy",
    "cross_entropy",
]

Model = MLP | Logistic | ResNet18
