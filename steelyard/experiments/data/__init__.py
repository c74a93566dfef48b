"""Data sets in memory: each a frozen dataclass of its settings with ``load(seed, root, download) -> Splits``."""

from steelyard.experiments.data.adult import Adult
from steelyard.experiments.data.celeba import CelebA
from steelyard.experiments.data.cifar_mnist import CIFARMNIST
from steelyard.experiments.data.compas import COMPAS
from steelyard.experiments.data.digits import ColouredDigits
from steelyard.experiments.data.mnist import ColoredMNIST
from steelyard.experiments.data.own_arrays import OwnArrays
from steelyard.experiments.data.own_data import OwnData
from steelyard.experiments.data.own_images import OwnImages
from steelyard.experiments.data.own_python import OwnPython
from steelyard.experiments.data.own_table import OwnTable
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
    "OwnArrays",
    "OwnData",
    "OwnImages",
    "OwnPython",
    "OwnTable",
    "Splits",
    "Waterbirds",
    "called",
]

DataSet = (
    ColouredDigits
    | ColoredMNIST
    | CIFARMNIST
    | Adult
    | COMPAS
    | Waterbirds
    | CelebA
    | OwnTable
    | OwnArrays
    | OwnImages
    | OwnPython
)


def called(data: DataSet) -> str:
    """Return what tables, plots and pages call a data set: its own name, or that of the user's file."""
    return data.called if isinstance(data, OwnData) else data.name
