"""CIFAR-MNIST: a digit above a photograph, of which the digit predicts the label better and the photograph always."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from steelyard._support import _check
from steelyard.bilevel.batch import Batch
from steelyard.experiments.data.cifar import read_cifar
from steelyard.experiments.data.mnist import read_mnist
from steelyard.experiments.data.splits import Splits
from steelyard.experiments.errors import DataError

__all__ = ["CIFARMNIST"]

_CLASSES = ("automobile", "truck")


@dataclass(frozen=True)
class CIFARMNIST:
    """CIFAR-MNIST: MNIST's zeros and ones stacked above CIFAR-10's automobiles and trucks.

    Input: 3 x 64 x 32, the digit (padded to 32 x 32, gray) above the photograph, standardised in each channel by the
        training images; validation and test alike, which the public generator leaves out.
    Label: 0 automobile, 1 truck, wrong with probability `label_noise` (independently).
    Metadata: environment e: the digit is the (noisy) label in exactly a share ``train_agreements[e]`` of the samples,
        in training and validation; `test_agreement` in the test split.
    Splits: `train_size` training samples in each environment (5,000: with two, all of CIFAR-10's automobiles and
        trucks), half of each class; of CIFAR-10's 2,000 test images `test_size` are the test split (as published) and
        `validation_size` for each environment are validation, which the published protocol does not have. All are
        drawn by `seed`; no photograph and no digit is used twice. Digits of training and validation are from MNIST's
        training images, those of the test from its test images.
    Facts: label_flipped, digit_agrees (training samples).
    Citation: Y. Lin, H. Dong, H. Wang, T. Zhang (2022), Bayesian Invariant Risk Minimization; after H. Shah et al.
        (2020), The Pitfalls of Simplicity Bias in Neural Networks, arXiv:2006.07710. A. Krizhevsky (2009), Learning
        Multiple Layers of Features from Tiny Images.
    Licence: CC BY-SA 3.0 (MNIST); none stated (CIFAR-10).
    """

    story: ClassVar[str] = (
        "The digit of a training image predicts its label better than the photograph does; in the test split the digit "
        "is nearly always wrong. A model that learned the digit scores high in training and low on the test."
    )
    needs_root: ClassVar[bool] = True
    grayscale: ClassVar[bool] = False
    name: Literal["cifar_mnist"] = "cifar_mnist"
    label_noise: float = 0.1
    train_agreements: tuple[float, ...] = (0.999, 0.7)
    test_agreement: float = 0.1
    train_size: int = 5000
    validation_size: int = 500
    test_size: int = 1000

    def __post_init__(self) -> None:
        _check.in_range("label_noise", self.label_noise, low=0.0, high=1.0)
        _check.in_range("test_agreement", self.test_agreement, low=0.0, high=1.0)
        for share in self.train_agreements:
            _check.in_range("train_agreements", share, low=0.0, high=1.0)
        if not self.train_agreements:
            raise ValueError("train_agreements needs one share for each training environment, got none")
        for name in ("train_size", "validation_size", "test_size"):
            if _check.integer(name, getattr(self, name), low=2) % 2:
                raise ValueError(f"{name} must be even, half of each class, got {getattr(self, name)}")

    def load(self, seed: int, root: Path | None = None, download: bool = False) -> Splits:
        """Return the splits that `seed` makes, from the files under `root`.

        Args:
            seed: of all draws.
            root: the data root: CIFAR-10 as an image folder (cifar10/train|test/CLASS/*.jpg) or as torchvision keeps it
                (cifar-10-batches-py/), and MNIST as torchvision keeps it (MNIST/raw/).
            download: let torchvision download what is missing.

        Raises:
            DataError: no root, files missing or damaged, or fewer images than the sizes ask for.
        """
        generator = torch.Generator().manual_seed(seed)
        learned = _Deck("training", read_cifar(root, "train", _CLASSES, download), _CLASSES, generator)
        others = _Deck("test", read_cifar(root, "test", _CLASSES, download), _CLASSES, generator)
        digits = _Deck("training", _zeros_and_ones(root, "train", download), ("zeros", "ones"), generator)
        unseen = _Deck("test", _zeros_and_ones(root, "t10k", download), ("zeros", "ones"), generator)
        count = len(self.train_agreements)
        train, facts = self._part(learned, digits, [self.train_size] * count, self.train_agreements, generator)
        test, _ = self._part(others, unseen, [self.test_size], (self.test_agreement,), generator)
        held, _ = self._part(others, digits, [self.validation_size] * count, self.train_agreements, generator)
        mean, std = train.inputs.mean((0, 2, 3)), train.inputs.std((0, 2, 3), correction=0).clamp(min=1e-6)

        def standardised(part: Batch, environment: Tensor | None) -> Batch:
            part.inputs.sub_(mean[:, None, None]).div_(std[:, None, None])  # in place: a quarter of a gigabyte
            return Batch.of(part.inputs, part.targets, environment=environment)

        return Splits(
            name=self.name,
            train=standardised(train, train.environment),
            validation=standardised(held, held.environment),
            test=standardised(test, None),
            classes=_CLASSES,
            environments=tuple(f"digit agrees {share:g}" for share in self.train_agreements),
            facts=facts,
        )

    def _part(
        self,
        photographs: _Deck,
        digits: _Deck,
        sizes: list[int],
        agreements: tuple[float, ...],
        generator: torch.Generator,
    ) -> tuple[Batch, dict[str, Tensor]]:
        """Return one part's samples, an environment for each size, shuffled, with pixels in [0, 1], and their facts."""
        environment = torch.cat([torch.full((size,), e) for e, size in enumerate(sizes)])
        clean = torch.cat([torch.arange(size) % 2 for size in sizes])
        flipped = torch.rand(len(clean), generator=generator) < self.label_noise
        targets = clean ^ flipped.long()
        agrees = torch.cat([_exactly(size, share, generator) for size, share in zip(sizes, agreements, strict=True)])
        digit = torch.where(agrees, targets, 1 - targets)
        order = torch.randperm(len(clean), generator=generator)
        below = photographs.draw(clean[order])
        inputs = stack(digits.draw(digit[order]), below)
        facts = {"label_flipped": flipped[order], "digit_agrees": agrees[order]}
        return Batch.of(inputs, targets[order], environment=environment[order]), facts


def stack(digits: UInt8[Tensor, "n 28 28"], photographs: UInt8[Tensor, "n 3 32 32"]) -> Float[Tensor, "n 3 64 32"]:
    """Return images with the digit, padded to 32 x 32, above the photograph; values in [0, 1]."""
    padded = torch.nn.functional.pad(digits, (2, 2, 2, 2))[:, None].expand(-1, 3, -1, -1)
    return torch.cat([padded, photographs], 2).float().div_(255)


class _Deck:
    """Images of two kinds, shuffled, each of which is drawn once."""

    def __init__(
        self, part: str, images: tuple[Tensor, ...], names: tuple[str, str], generator: torch.Generator
    ) -> None:
        self.part, self.names = part, names
        self.images = [kind[torch.randperm(len(kind), generator=generator)] for kind in images]
        self.drawn = [0, 0]

    def draw(self, kinds: Int[Tensor, " n"]) -> UInt8[Tensor, "n *shape"]:
        """Return the next image of each kind (0 or 1)."""
        found = self.images[0].new_empty(len(kinds), *self.images[0].shape[1:])
        for kind, images in enumerate(self.images):
            member = kinds == kind
            start = self.drawn[kind]
            self.drawn[kind] = start + int(member.sum())
            if self.drawn[kind] > len(images):
                raise DataError(
                    f"the sizes of CIFAR-MNIST ask for {self.drawn[kind]} {self.names[kind]} of the {self.part} "
                    f"images, there are {len(images)}; lower train_size, validation_size or test_size"
                )
            found[member] = images[start : self.drawn[kind]]
        return found


def _exactly(size: int, share: float, generator: torch.Generator) -> Tensor:
    """Return `size` booleans of which exactly the share `share` (rounded) is true, in random places."""
    return torch.randperm(size, generator=generator) < round(share * size)


def _zeros_and_ones(root: Path | None, part: Literal["train", "t10k"], download: bool) -> tuple[Tensor, Tensor]:
    images, digits = read_mnist(root, part, download)
    return images[digits == 0], images[digits == 1]
