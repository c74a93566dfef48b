"""Four-Moons: the toy data set on which least confidence fails."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from steelyard._support import _check
from steelyard.bilevel.batch import Batch
from steelyard.experiments.data.corruption import class_noise
from steelyard.experiments.data.splits import Splits
from steelyard.experiments.training.seeds import generator

__all__ = ["NOISY_MOON", "FourMoons"]

NOISY_MOON = 0
"""The class of the upper left moon."""


@dataclass(frozen=True)
class FourMoons:
    """Two pairs of interleaved half circles side by side, a class each; the labels of the upper left one are noise.

    Input: a point in the plane. A pair is scikit-learn's `make_moons` with Gaussian noise of `spread`; the second one
        lies 4 to the right.
    Label: the moon, 0 to 3; in training and validation a point of moon 0 has a label drawn uniformly from all four.
    Splits: training has `samples` points (a quarter from each moon), and the noisy ones `copies` times over, labels
        included: 70 % of the pool is noise by default. Validation and test have `samples` / 4 new points each. The test
        labels are the moons themselves. A model that has solved the three moons that can be learned can do no better
        than chance on the fourth: 81.25 % is then what is expected of it.
    Facts: noisy (training samples).
    Citation: Khosla et al., Understanding and Improving Neural Active Learning on Heteroskedastic Distributions, Figure
        1; sizes, copies and test labels as in their code (which tests on the training points themselves).
    """

    needs_root: ClassVar[bool] = False
    name: Literal["four_moons"] = "four_moons"
    samples: int = 12000
    copies: int = 7
    spread: float = 0.1

    def __post_init__(self) -> None:
        _check.integer("samples", self.samples, low=16)
        _check.integer("copies", self.copies, low=1)
        _check.in_range("spread", self.spread, low=0.0)

    def load(self, seed: int, root: Path | None = None, download: bool = False) -> Splits:
        """Return the splits that `seed` makes; `root` and `download` are not needed."""
        train, moon = self._draw(self.samples, seed, 0)
        held, held_moon = self._draw(self.samples // 4, seed, 1)
        test, test_moon = self._draw(self.samples // 4, seed, 2)
        labels, noisy = class_noise(moon, 4, 1.0, generator(seed, 3), noisy=moon == NOISY_MOON)
        held_labels, _ = class_noise(held_moon, 4, 1.0, generator(seed, 4), noisy=held_moon == NOISY_MOON)
        rows = torch.cat([torch.arange(len(labels)), noisy.nonzero().flatten().repeat(self.copies - 1)])
        return Splits(
            name=self.name,
            train=_batch(train[rows], labels[rows]),
            validation=_batch(held, held_labels),
            test=_batch(test, test_moon),
            classes=("upper left", "lower left", "upper right", "lower right"),
            environments=("all",),
            facts={"noisy": noisy[rows]},
        )

    def _draw(self, count: int, seed: int, part: int) -> tuple[Tensor, Tensor]:
        """Return points ``(count, 2)`` and their moons ``(count,)``, `count` rounded to quarters."""
        from sklearn.datasets import make_moons

        points, moons = [], []
        for pair in range(2):
            draw = generator(seed, part, pair).initial_seed() % 2**32  # what NumPy's legacy generators take
            x, y = make_moons(n_samples=(count // 4, count // 4), noise=self.spread, random_state=draw)
            points.append(torch.tensor(x, dtype=torch.float32) + torch.tensor([4.0 * pair, 0.0]))
            moons.append(torch.tensor(y, dtype=torch.int64) + 2 * pair)
        return torch.cat(points), torch.cat(moons)


def _batch(inputs: Tensor, targets: Tensor) -> Batch:
    return Batch.of(inputs, targets, environment=torch.zeros_like(targets))
