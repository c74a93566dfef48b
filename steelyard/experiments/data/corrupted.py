"""A data set's field `corruption`: which of its labels are made wrong after the images are drawn, and how many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard.experiments.data.colour import Coloured
from steelyard.experiments.data.corruption import adversarial_flips, class_noise, uniform_flips

__all__ = ["Corruption", "corrupted_facts"]

_NOISY = (9, 4, 8, 3, 7, 2, 6, 1, 5, 0)  # the digits that become noise, in turn from the two classes
_RIDGE = 1e-3


@dataclass(frozen=True)
class Corruption:
    """Wrong labels on top of what the data set has: the images, their colours among them, stay as they are.

    So a corrupted label mostly contradicts its image's colour too, as a clerk's error would. Training and validation
    samples are corrupted alike, each split by its exact share: validation is drawn from the training environments,
    and nobody who has these has clean labels. The test split is never touched.

    Attributes:
        kind: "uniform": chosen at random, the label flipped.
            "adversarial": the samples whose flip makes the largest gradient norm under the attacker's model, which is
            the ridge regression of the training labels on the pixels, colour included (`adversarial_flips`; `sigmoid`
            of its outputs are the probabilities). The attacked samples are those that it was most sure of.
            "noisy_class": heteroskedastic; every label of some digits is drawn again by a coin toss: of 9, then 4, 8,
            3, 7, 2, 6, 1, 5, 0, as many digits as hold the share, and of these as many samples at random.
        share: of all samples of the split, in [0, 1]; 0 is none. Half of those of "noisy_class" keep their label by
            chance and count as corrupted too, for what they say is chance.
    """

    kind: Literal["uniform", "adversarial", "noisy_class"] = "uniform"
    share: float = 0.0

    def __post_init__(self) -> None:
        _check.choice("kind", self.kind, ["uniform", "adversarial", "noisy_class"])
        _check.in_range("share", self.share, low=0.0, high=1.0)

    def apply(self, parts: Sequence[tuple[Coloured, Int[Tensor, " _"]]], generator: torch.Generator) -> list[Coloured]:
        """Return the parts with wrong labels; `label_flipped` and `colour_agrees` are then of the new labels.

        Args:
            parts: each split with its digits ``(n of the split,)``; the first is the attacker's training set.
            generator: of all draws here; with a share of 0 none is taken.
        """
        if not self.share:
            return [part for part, _ in parts]
        attacker = _ridge(parts[0][0].inputs, parts[0][0].targets) if self.kind == "adversarial" else None
        return [self._one(part, digits, attacker, generator) for part, digits in parts]

    def _one(
        self, part: Coloured, digits: Tensor, attacker: Float[Tensor, " features"] | None, generator: torch.Generator
    ) -> Coloured:
        if attacker is not None:
            chance = torch.sigmoid(_features(part.inputs) @ attacker)
            both = torch.stack([1 - chance, chance], dim=1)
            targets, chosen = adversarial_flips(both, part.targets, self.share, generator)
        elif self.kind == "uniform":
            targets, chosen = uniform_flips(part.targets, 2, self.share, generator)
        else:
            noisy = _noisy_digits(digits, self.share)
            within = self.share * len(digits) / max(int(noisy.sum()), 1)
            targets, chosen = class_noise(part.targets, 2, min(within, 1.0), generator, noisy=noisy)
        changed = targets != part.targets
        return replace(
            part,
            targets=targets,
            label_flipped=part.label_flipped ^ changed,
            colour_agrees=part.colour_agrees ^ changed,
            label_corrupted=chosen,
        )


def corrupted_facts(part: Coloured) -> dict[str, Bool[Tensor, " n"]]:
    """Return the facts of a coloured split: label_flipped, colour_agrees and, if it was corrupted, label_corrupted."""
    facts = {"label_flipped": part.label_flipped, "colour_agrees": part.colour_agrees}
    return facts if part.label_corrupted is None else {**facts, "label_corrupted": part.label_corrupted}


def _noisy_digits(digits: Tensor, share: float) -> Bool[Tensor, " n"]:
    """Return which samples are of the first digits of `_NOISY` that hold at least the share."""
    wanted, noisy = math.floor(share * len(digits) + 0.5), torch.zeros_like(digits, dtype=torch.bool)
    for digit in _NOISY:
        if int(noisy.sum()) >= wanted:
            break
        noisy |= digits == digit
    return noisy


def _features(inputs: Tensor) -> Float[Tensor, "n features"]:
    flat = inputs.flatten(1).double()
    return torch.cat([flat, torch.ones(len(flat), 1, dtype=torch.float64)], dim=1)


def _ridge(inputs: Tensor, targets: Tensor) -> Float[Tensor, " features"]:
    """Return coefficients of the ridge regression of +-2 on the pixels: sigmoid(2) is 0.88, so few outputs saturate."""
    x, y = _features(inputs), 4.0 * targets.double() - 2.0
    gram = x.T @ x
    gram.diagonal().add_(_RIDGE * len(x))
    return torch.linalg.solve(gram, x.T @ y)
