"""Coloured digits: the offline default, made of the 1,797 real digits that ship with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import torch

from steelyard._support import _check
from steelyard.bilevel.batch import Batch
from steelyard.experiments.data.colour import STORY, Coloured, colour
from steelyard.experiments.data.corrupted import Corruption, corrupted_facts
from steelyard.experiments.data.splits import Splits, deal

__all__ = ["ColouredDigits"]


@dataclass(frozen=True)
class ColouredDigits:
    """Scikit-learn's 8 x 8 digits, coloured as in Colored MNIST.

    Input: 2 x 8 x 8, the image (0 .. 1) in the channel of its colour, zeros in the other.
    Label: 1 for digits below five, 0 for the others, wrong with probability `label_noise`.
    Metadata: environment 0 or 1 (training and validation); the colour disagrees with the label with probability
        `train_flips[environment]` there and `test_flip` in the test split. So colour predicts the label better (85%)
        than any shape can (75%) in training, and is wrong (10%) at the test.
    Splits: 1,797 images, dealt at random by `seed`, stratified by digit: the test split takes `test_share` (449 by
        default), validation takes `validation_share` of the rest (269), training keeps 1,079; training and
        validation are halved into the two environments. No image is in two splits. At this size one split's
        accuracy has a standard error of 2 points on the test, 2.5 on validation: average over seeds.
    Corruption: `corruption` makes labels of training and validation wrong on top of that, after colouring; never of the
        test split, whose samples are the same with and without it.
    Facts: label_flipped, colour_agrees, and with corruption label_corrupted (training samples).
    Citation: E. Alpaydin and C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning
        Repository, doi:10.24432/C50P49 (its test part). Colouring: Arjovsky et al. (2019), Invariant Risk
        Minimization, arXiv:1907.02893.
    Licence: CC BY 4.0 (UCI); distributed with scikit-learn.

    Example:
        >>> splits = ColouredDigits().load(seed=0)
        >>> len(splits.train), len(splits.validation), len(splits.test), tuple(splits.train.inputs.shape[1:])
        (1079, 269, 449, (2, 8, 8))
    """

    story: ClassVar[str] = STORY
    needs_root: ClassVar[bool] = False
    name: Literal["coloured_digits"] = "coloured_digits"
    label_noise: float = 0.25
    train_flips: tuple[float, ...] = (0.1, 0.2)
    test_flip: float = 0.9
    test_share: float = 0.25
    validation_share: float = 0.2
    grayscale: bool = False  # the oracle's view: colour removed
    corruption: Corruption = field(default_factory=Corruption)

    def __post_init__(self) -> None:
        _check.in_range("label_noise", self.label_noise, low=0.0, high=1.0)
        _check.in_range("test_flip", self.test_flip, low=0.0, high=1.0)
        for flip in self.train_flips:
            _check.in_range("train_flips", flip, low=0.0, high=1.0)
        if not self.train_flips:
            raise ValueError("train_flips needs one flip rate for each training environment, got none")
        for name in ("test_share", "validation_share"):
            _check.in_range(name, getattr(self, name), low=0.0, high=1.0, open_low=True, open_high=True)

    def load(self, seed: int, root: Path | None = None, download: bool = False) -> Splits:
        """Return the splits that `seed` makes. `root` and `download` are not needed: the digits are installed."""
        from sklearn.datasets import load_digits  # a second's import, which no other command needs

        generator = torch.Generator().manual_seed(seed)
        bunch = load_digits()
        images = torch.tensor(bunch.images, dtype=torch.float32) / 16
        digits = torch.tensor(bunch.target, dtype=torch.int64)
        others, test = deal(digits, self.test_share, generator)
        train, validation = (others[part] for part in deal(digits[others], self.validation_share, generator))

        def coloured(positions: torch.Tensor, flip: torch.Tensor) -> Coloured:
            return colour(images[positions], digits[positions], flip, label_noise=self.label_noise, generator=generator)

        def environments(positions: torch.Tensor) -> torch.Tensor:
            # sorted by digit, then dealt in turn: each environment gets every digit to within one
            rank = torch.argsort(torch.argsort(digits[positions], stable=True), stable=True)
            return rank % len(self.train_flips)

        flips = torch.tensor(self.train_flips)
        environment, held_environment = environments(train), environments(validation)
        learned = coloured(train, flips[environment])
        held = coloured(validation, flips[held_environment])
        shifted = coloured(test, torch.full((len(test),), self.test_flip))
        parts = [(learned, digits[train]), (held, digits[validation])]
        learned, held = self.corruption.apply(parts, generator)  # drawn last: all else is as without it
        splits = Splits(
            name=self.name,
            train=Batch.of(learned.inputs, learned.targets, environment=environment),
            validation=Batch.of(held.inputs, held.targets, environment=held_environment),
            test=Batch.of(shifted.inputs, shifted.targets),
            classes=("5 to 9", "0 to 4"),
            environments=tuple(f"colour flip {flip:g}" for flip in self.train_flips),
            facts=corrupted_facts(learned),
        )
        return splits.grayscale() if self.grayscale else splits
