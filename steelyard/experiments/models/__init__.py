"""Models by name, one family a file: a frozen dataclass of settings with ``build(shape, classes, seed) -> nn.Module``.

Inputs are ``(n, *shape)``, outputs ``(n, width)`` as the model's `head` reads them.
"""

from steelyard.experiments.models.heads import (
    HEADS,
    Head,
    HeadName,
    binary_cross_entropy,
    cross_entropy,
    squared_error,
)
from steelyard.experiments.models.lenet import LeNet5
from steelyard.experiments.models.mlp import MLP, Logistic
from steelyard.experiments.models.preact_resnet import PreActResNet18
from steelyard.experiments.models.pretrained import PretrainedResNet
from steelyard.experiments.models.resnet import ResNet18
from steelyard.experiments.models.vgg import VGG8, VGG16

__all__ = [
    "HEADS",
    "MLP",
    "VGG8",
    "VGG16",
    "Head",
    "HeadName",
    "LeNet5",
    "Logistic",
    "Model",
    "PreActResNet18",
    "PretrainedResNet",
    "ResNet18",
    "binary_cross_entropy",
    "cross_entropy",
    "squared_error",
]

Model = MLP | Logistic | ResNet18 | LeNet5 | PreActResNet18 | VGG8 | VGG16 | PretrainedResNet
