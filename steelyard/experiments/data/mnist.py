"""Colored MNIST, exactly as published, from MNIST's own files under a data root."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from steelyard._support import _check
from steelyard.bilevel.batch import Batch
from steelyard.experiments.data.colour import STORY, Coloured, colour
from steelyard.experiments.data.corrupted import Corruption, corrupted_facts
from steelyard.experiments.data.idx import read_idx
from steelyard.experiments.data.splits import Splits
from steelyard.experiments.errors import DataError

__all__ = ["ColoredMNIST", "read_mnist"]

_LAYOUT = "{root}/MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte, each plain or .gz"


@dataclass(frozen=True)
class ColoredMNIST:
    """Colored MNIST (Arjovsky et al. 2019), with a validation split that its authors do not have.

    Input: 2 x 14 x 14 (every second row and column), the image (0 .. 1) in the channel of its colour, zeros in the
        other.
    Label: 1 for digits below five, 0 for the others, wrong with probability 0.25.
    Metadata: environment e: the colour disagrees with the label with probability ``train_flips[e]`` in training and
        validation (0.1 and 0.2 as published; there may be any number of environments), `test_flip` in the test split.
    Splits: of MNIST's 60,000 training images the first 50,000, shuffled by `seed`, are the training environments (dealt
        in turn: of two, even positions are environment 0 and odd ones 1), the last 10,000 the test split, as published.
        Validation, by `validation`:
        "t10k": MNIST's 10,000 test images, which the published protocol leaves unused, labelled and coloured like
        the training environments, so that all 50,000 published training samples train;
        "holdout": the last `holdout` of the 50,000 shuffled samples, which then do not train.
    Corruption: `corruption` makes labels of training and validation wrong on top of that, after colouring; never of the
        test split, whose samples are the same with and without it.
    Facts: label_flipped, colour_agrees, and with corruption label_corrupted (training samples).
    Citation: M. Arjovsky, L. Bottou, I. Gulrajani, D. Lopez-Paz (2019), Invariant Risk Minimization, arXiv:1907.02893;
        Y. LeCun, C. Cortes, C. J. C. Burges, The MNIST database of handwritten digits.
    Licence: CC BY-SA 3.0 (MNIST).
    """

    story: ClassVar[str] = STORY
    needs_root: ClassVar[bool] = True
    name: Literal["colored_mnist"] = "colored_mnist"
    validation: Literal["t10k", "holdout"] = "t10k"
    holdout: int = 5000  # samples; only for validation = "holdout"
    label_noise: float = 0.25
    train_flips: tuple[float, ...] = (0.1, 0.2)
    test_flip: float = 0.9
    grayscale: bool = False  # the oracle's view: colour removed
    corruption: Corruption = field(default_factory=Corruption)

    def __post_init__(self) -> None:
        for rate in (self.label_noise, self.test_flip, *self.train_flips):
            _check.in_range("label_noise, test_flip and train_flips", rate, low=0.0, high=1.0)
        if not self.train_flips:
            raise ValueError("train_flips needs one flip rate for each training environment, got none")
        _check.integer("holdout", self.holdout, low=len(self.train_flips))

    def load(self, seed: int, root: Path | None = None, download: bool = False) -> Splits:
        """Return the splits that `seed` makes, from the files under `root`.

        Args:
            seed: of the shuffle, the label noise and the colours.
            root: the data root, in torchvision's layout (`MNIST/raw/...`); required.
            download: let torchvision download MNIST to `root` if it is not there.

        Raises:
            DataError: no root, files missing or damaged.
        """
        images, digits = read_mnist(root, "train", download)
        generator = torch.Generator().manual_seed(seed)
        first = len(digits) * 5 // 6  # 50,000 of 60,000; a smaller file (a test's) keeps the proportion
        shuffle = torch.randperm(first, generator=generator)
        environments = [self._environments(images[shuffle], digits[shuffle], generator)]
        flip = torch.full((len(digits) - first,), self.test_flip)
        shifted = self._colour(images[first:], digits[first:], flip, generator)
        labels = [digits[shuffle]]
        if self.validation == "t10k":
            held_images, held_digits = read_mnist(root, "t10k")
            environments.append(self._environments(held_images, held_digits, generator))
            labels.append(held_digits)
        made = self.corruption.apply(list(zip(environments, labels, strict=True)), generator)  # drawn last
        train, *rest = map(self._batch, made)
        facts = corrupted_facts(made[0])
        if self.validation == "holdout":
            fewest = len(self.train_flips)  # a sample of each environment in either part
            kept = first - _check.integer("holdout", self.holdout, low=fewest, high=first - fewest)
            held = train.take(torch.arange(kept, first))
            rest = [Batch.of(held.inputs, held.targets, environment=held.environment)]  # ids of its own, from 0
            train, facts = train.take(torch.arange(kept)), {name: fact[:kept] for name, fact in facts.items()}
        splits = Splits(
            name=self.name,
            train=train,
            validation=rest[0],
            test=Batch.of(shifted.inputs, shifted.targets),
            classes=("5 to 9", "0 to 4"),
            environments=tuple(f"colour flip {flip:g}" for flip in self.train_flips),
            facts=facts,
        )
        return splits.grayscale() if self.grayscale else splits

    def _environments(self, images: Tensor, digits: Tensor, generator: torch.Generator) -> Coloured:
        """Return samples coloured for the training environments, to which they are dealt in turn."""
        flips = torch.tensor(self.train_flips)[self._dealt(len(digits))]
        return self._colour(images, digits, flips, generator)

    def _batch(self, made: Coloured) -> Batch:
        return Batch.of(made.inputs, made.targets, environment=self._dealt(len(made.targets)))

    def _dealt(self, count: int) -> Tensor:
        return torch.arange(count) % len(self.train_flips)

    def _colour(self, images: Tensor, digits: Tensor, flip: Tensor, generator: torch.Generator) -> Coloured:
        small = images[:, ::2, ::2].float() / 255
        return colour(small, digits, flip, label_noise=self.label_noise, generator=generator)


def _layout(root: str | Path) -> str:
    return "looked for " + _LAYOUT.replace("{root}", str(root))


def _file(root: Path, stem: str) -> Path | None:
    raw = root / "MNIST" / "raw"
    return next((path for path in (raw / stem, raw / f"{stem}.gz") if path.is_file()), None)


def _stems(part: str) -> tuple[str, str]:
    return f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"


def _missing(root: Path) -> list[str]:
    return [stem for part in ("train", "t10k") for stem in _stems(part) if _file(root, stem) is None]


def read_mnist(
    root: Path | None, part: Literal["train", "t10k"], download: bool = False
) -> tuple[UInt8[Tensor, "n h w"], Int[Tensor, " n"]]:
    """Return the images and digits of one of MNIST's two parts.

    Args:
        root: the data root, in torchvision's layout (`MNIST/raw/...`); required.
        part: MNIST's training images or its test images.
        download: let torchvision download MNIST to `root` if it is not there.

    Raises:
        DataError: no root, files missing or damaged.
    """
    if root is None:
        raise DataError("MNIST needs a data root (--data-root, or STEELYARD_DATA): " + _layout("ROOT"))
    if download and _missing(root):
        _download(root)
    if missing := _missing(root):
        raise DataError(
            f"MNIST is not under {root}: {len(missing)} of 4 files are missing, the first {missing[0]}; "
            f"{_layout(root)}. Put the files there, or let torchvision fetch them with --download."
        )
    image_file, label_file = (_file(root, stem) or Path() for stem in _stems(part))
    images, labels = read_idx(image_file, 3), read_idx(label_file, 1).long()
    if len(images) != len(labels):
        raise DataError(f"{image_file} holds {len(images)} images, {label_file} {len(labels)} labels")
    if len(labels) and int(labels.max()) > 9:
        row = int((labels > 9).nonzero()[0])
        raise DataError(f"{label_file}: label {int(labels[row])} in row {row}, labels are 0 .. 9")
    return images, labels


def _download(root: Path) -> None:
    from steelyard._support._torchvision import torchvision

    try:
        torchvision.datasets.MNIST(str(root), train=True, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"torchvision could not download MNIST to {root}: {error}") from error
