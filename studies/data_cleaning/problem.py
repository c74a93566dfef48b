"""The data: a split of MNIST's training images and labels that are wrong by chance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from torch import Tensor

from steelyard.experiments.data.mnist import read_mnist

__all__ = ["CLASSES", "SHARES", "Digits", "Problem"]

SHARES = (0.5, 0.7, 0.9)
CLASSES = 10


@dataclass(frozen=True)
class Problem:
    """One seed's problem. Inputs are pixels in [0, 1] and a 1.

    Attributes:
        train: ``(20000, 785)``. labels: ``(20000,)`` as given, many of them wrong. truth: ``(20000,)`` the right ones.
        clean, clean_labels: 5,000 images with right labels.
        share: of the labels that were drawn again, uniformly (a tenth of them stays right).
    """

    train: Tensor
    labels: Tensor
    truth: Tensor
    clean: Tensor
    clean_labels: Tensor
    share: float

    @property
    def right(self) -> Tensor:
        """Which labels are right ``(20000,)``."""
        return self.labels == self.truth


@dataclass(frozen=True)
class Digits:
    """MNIST as published.

    Attributes:
        images, labels: the 60,000 of the training file. test, test_labels: the 10,000 of the test file.
        training, clean: how many images a problem has of each kind.
    """

    images: Tensor
    labels: Tensor
    test: Tensor
    test_labels: Tensor
    training: int = 20_000
    clean: int = 5_000

    @classmethod
    def read(cls, root: Path | None) -> Digits:
        """Read the files below `root`; raises DataError where they are not there."""
        images, labels = read_mnist(root, "train")
        test, test_labels = read_mnist(root, "t10k")
        return cls(images, labels, test, test_labels)

    def test_inputs(self) -> Tensor:
        """Return the inputs of the test images ``(10000, 785)``."""
        return inputs(self.test)

    def problem(self, seed: int, share: float) -> Problem:
        """Return the split and the corruption of a seed."""
        random = numpy.random.RandomState(seed)
        order = torch.from_numpy(random.permutation(len(self.images)))
        train, clean = order[: self.training], order[self.training : self.training + self.clean]
        truth = self.labels[train]
        drawn = torch.from_numpy(random.rand(self.training) < share)
        labels = truth.clone()
        labels[drawn] = torch.from_numpy(random.randint(0, CLASSES, int(drawn.sum())))
        return Problem(inputs(self.images[train]), labels, truth, inputs(self.images[clean]), self.labels[clean], share)


def inputs(images: Tensor) -> Tensor:
    """Return pixels in [0, 1] as rows, and a 1."""
    rows = images.reshape(len(images), -1).float() / 255
    return torch.cat([rows, torch.ones(len(rows), 1)], 1)
