"""Data sets in memory: each a frozen dataclass of its settings with ``load(seed, root, download) -> Splits``."""

from steelyard.experiments.data.adult import Adult
from steelyard.experiments.data.compas import COMPAS
from steelyard.experiments.data.digits import ColouredDigits
from steelyard.experiments.data.mnist import ColoredMNIST
from steelyard.experiments.data.splits import Splits

__all__ = ["COMPAS", "Adult", "ColoredMNIST", "ColouredDigits", "DataSet", "Splits"]

DataSet = ColouredDigits | ColoredMNIST | Adult | COMPAS
