"""The Colored MNIST construction on any grayscale digits: noisy binary labels, and a colour that predicts them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["STORY", "Coloured", "colour"]

STORY = (
    "The colour of a training image predicts its label better than its shape does; in the test split the colour is "
    "nearly always wrong. A model that learned the colour scores high in training and low on the test."
)


@dataclass(frozen=True)
class Coloured:
    """Digits after colouring.

    Attributes:
        inputs: ``(n, 2, h, w)``, the image in the channel of its colour, zeros in the other.
        targets: ``(n,)`` int64, the noisy label: 1 for digits below five.
        label_flipped: ``(n,)``, where the noisy label is not the digit's.
        colour_agrees: ``(n,)``, where the colour is the noisy label's.
        label_corrupted: ``(n,)``, which labels `Corruption` chose; None before it, or without it.
    """

    inputs: Float[Tensor, "n 2 h w"]
    targets: Int[Tensor, " n"]
    label_flipped: Bool[Tensor, " n"]
    colour_agrees: Bool[Tensor, " n"]
    label_corrupted: Bool[Tensor, " n"] | None = None


def colour(
    images: Float[Tensor, "n h w"],
    digits: Int[Tensor, " n"],
    flip: Float[Tensor, " n"],
    *,
    label_noise: float,
    generator: torch.Generator,
) -> Coloured:
    """Colour grayscale digits as Colored MNIST does (Arjovsky et al. 2019, "Invariant Risk Minimization", section 5.2).

    The label is ``digit < 5``, flipped with probability `label_noise`; the colour is the (noisy) label, flipped with
    probability `flip`; the image goes to channel `colour` and the other channel is zero.

    Args:
        images: ``(n, h, w)`` in [0, 1].
        digits: ``(n,)`` 0 .. 9.
        flip: ``(n,)`` each sample's probability that its colour disagrees with its label.
        label_noise: probability that a label is wrong.
        generator: source of all randomness here; two draws a sample.
    """
    n = len(digits)
    flipped = torch.rand(n, generator=generator) < label_noise
    disagrees = torch.rand(n, generator=generator) < flip
    targets = ((digits < 5) ^ flipped).long()
    channel = targets ^ disagrees.long()
    inputs = images.new_zeros(n, 2, *images.shape[1:])
    inputs[torch.arange(n), channel] = images
    return Coloured(inputs, targets, flipped, ~disagrees)
