"""Plain image data sets for active learning: every class its own, nothing spurious, pixels in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard.bilevel.batch import Batch
from steelyard.experiments.data.cifar import read_cifar
from steelyard.experiments.data.mnist import read_mnist
from steelyard.experiments.data.splits import Splits, deal
from steelyard.experiments.errors import DataError

__all__ = ["CIFAR10", "MNIST", "SVHN", "Digits"]

_PARTS: tuple[Literal["train", "test"], ...] = ("train", "test")
_TEN = tuple("0123456789")
_OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class _Images:
    """What all of them have.

    Attributes:
        validation_share: of the training images, held out stratified by class. The loop decides nothing by them; they
            are there to choose settings by without the test split.
        samples: at most so many training images, drawn by the seed from those not held out; 0 for all.
    """

    validation_share: float = 0.02
    samples: int = 0

    def __post_init__(self) -> None:
        _check.integer("samples", self.samples, low=0)
        _check.in_range("validation_share", self.validation_share, low=0.0, high=1.0, open_low=True, open_high=True)

    def _splits(
        self,
        name: str,
        train: tuple[Float[Tensor, "n channels h w"], Int[Tensor, " n"]],
        test: tuple[Float[Tensor, "m channels h w"], Int[Tensor, " m"]],
        classes: Sequence[str],
        generator: torch.Generator,
    ) -> Splits:
        inputs, targets = train
        kept, held = deal(targets, self.validation_share, generator)  # each in random order
        kept = kept[: self.samples or None]
        return Splits(
            name=name,
            train=_batch(inputs[kept], targets[kept]),
            validation=_batch(inputs[held], targets[held]),
            test=_batch(*test),
            classes=tuple(classes),
            environments=("all",),
        )


def _batch(inputs: Tensor, targets: Tensor) -> Batch:
    return Batch.of(inputs, targets, environment=torch.zeros_like(targets))


def _pixels(images: Tensor) -> Tensor:
    return images.float() / 255


@dataclass(frozen=True)
class Digits(_Images):
    """Scikit-learn's 1,797 digits, 1 x 8 x 8: the offline default.

    Splits: dealt by `seed`, stratified by digit: `test_share` (449 by default) is the test split, `validation_share` of
        the rest (134) validation; 1,214 images train.
    Citation: E. Alpaydin and C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning
        Repository, doi:10.24432/C50P49 (its test part).
    Licence: CC BY 4.0 (UCI); distributed with scikit-learn.

    Example:
        >>> splits = Digits().load(seed=0)
        >>> len(splits.train), len(splits.validation), len(splits.test), tuple(splits.train.inputs.shape[1:])
        (1214, 134, 449, (1, 8, 8))
    """

    needs_root: ClassVar[bool] = False
    name: Literal["digits"] = "digits"
    validation_share: float = 0.1
    test_share: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.in_range("test_share", self.test_share, low=0.0, high=1.0, open_low=True, open_high=True)

    def load(self, seed: int, root: Path | None = None, download: bool = False) -> Splits:
        """Return the splits that `seed` makes; `root` and `download` are not needed."""
        from sklearn.datasets import load_digits  # a second's import, which no other data set needs

        generator = torch.Generator().manual_seed(seed)
        bunch = load_digits()
        inputs = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
        targets = torch.tensor(bunch.target, dtype=torch.int64)
        train, test = deal(targets, self.test_share, generator)
        learned, tested = ((inputs[part], targets[part]) for part in (train, test))
        return self._splits(self.name, learned, tested, _TEN, generator)


@dataclass(frozen=True)
class MNIST(_Images):
    """MNIST, 1 x 28 x 28, from its own files in torchvision's layout.

    Splits: the 60,000 training images, of which `validation_share` is held out by `seed`; the 10,000 test images.
    Citation: Y. LeCun, C. Cortes, C. J. C. Burges, The MNIST database of handwritten digits.
    Licence: CC BY-SA 3.0.
    """

    needs_root: ClassVar[bool] = True
    name: Literal["mnist"] = "mnist"

    def load(self, seed: int, root: Path | None = None, download: bool = False) -> Splits:
        """Return the splits that `seed` makes, from `root`/MNIST/raw; DataError if that cannot be read."""
        train, test = read_mnist(root, "train", download), read_mnist(root, "t10k")
        parts = ((_pixels(images[:, None]), digits) for images, digits in (train, test))
        return self._splits(self.name, next(parts), next(parts), _TEN, torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class CIFAR10(_Images):
    """CIFAR-10, 3 x 32 x 32, from an image folder or torchvision's files.

    Splits: the 50,000 training images, of which `validation_share` is held out by `seed`; the 10,000 test images.
    Citation: A. Krizhevsky (2009), Learning multiple layers of features from tiny images.
    Licence: none stated by its authors.
    """

    needs_root: ClassVar[bool] = True
    name: Literal["cifar10"] = "cifar10"

    def load(self, seed: int, root: Path | None = None, download: bool = False) -> Splits:
        """Return the splits that `seed` makes; DataError if `root` does not hold the images."""
        train, test = (_joined(read_cifar(root, part, _OBJECTS, download)) for part in _PARTS)
        return self._splits(self.name, train, test, _OBJECTS, torch.Generator().manual_seed(seed))


def _joined(classes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    targets = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(images) for images in classes]))
    return _pixels(torch.cat(list(classes))), targets


@dataclass(frozen=True)
class SVHN(_Images):
    """Street View House Numbers, 3 x 32 x 32, from `train_32x32.mat` and `test_32x32.mat`.

    torchvision reads them, after it has compared their MD5 with the published one.

    Splits: the 73,257 training images, of which `validation_share` is held out by `seed`; the 26,032 test images.
    Citation: Y. Netzer et al. (2011), Reading digits in natural images with unsupervised feature learning.
    Licence: for non-commercial use.
    """

    needs_root: ClassVar[bool] = True
    name: Literal["svhn"] = "svhn"

    def load(self, seed: int, root: Path | None = None, download: bool = False) -> Splits:
        """Return the splits that `seed` makes; DataError if `root` does not hold the files."""
        train, test = (_street_view(root, part, download) for part in _PARTS)
        return self._splits(self.name, train, test, _TEN, torch.Generator().manual_seed(seed))


def _street_view(root: Path | None, part: str, download: bool) -> tuple[Tensor, Tensor]:
    from steelyard._support._torchvision import torchvision

    layout = "looked for train_32x32.mat and test_32x32.mat in it"
    if root is None:
        raise DataError(f"SVHN needs a data root (--data-root, or STEELYARD_DATA): {layout}")
    try:
        data = torchvision.datasets.SVHN(str(root), split=part, download=download)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"SVHN in {root} cannot be read: {error}; {layout}. Put the files there, or let torchvision fetch them "
            "with --download."
        ) from error
    return _pixels(torch.from_numpy(data.data)), torch.from_numpy(data.labels).long()
