"""Data sets in memory: each a frozen dataclass of its settings with ``load(seed, root, download) -> Splits``."""

from steelyard.experiments.data.adult import Adult
from steelyard.experiments.data.celeba import CelebA
from steelyard.experiments.data.cifar_mnist import CIFARMNIST
from steelyard.experiments.data.compas import COMPAS
from steelyard.experiments.data.digits import ColouredDigits
from steelyard.experiments.data.mnist import ColoredMNIST
from steelyard.experiments.data.splits import Splits
from steelyard.experiments.data.waterbirds import Waterbirds

__all__ = [
    "CIFARMNIST",
    "COMPAS",
    "Adult",
    "CelebA",
    "ColoredMNIST",
    "ColouredDigits",
    "DataSet",
    "Splits",
    "Waterbirds",
]

DataSet = ColouredDigits | ColoredMNIST | CIFARMNIST | Adult | COMPAS | Waterbirds | CelebA
