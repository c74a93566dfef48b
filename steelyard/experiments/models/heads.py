"""The output heads: what a loss and a decision are for one logit or for several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from steelyard.bilevel.objective import SampleLoss

__all__ = ["HEADS", "Head", "HeadName", "binary_cross_entropy", "cross_entropy", "squared_error"]

HeadName: TypeAlias = Literal["one_logit", "softmax", "value"]


def binary_cross_entropy(outputs: Float[Tensor, "n 1"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return each sample's loss for one logit, the log-odds of class 1, and class ids 0 or 1."""
    logit = _single(outputs).squeeze(1)
    return F.binary_cross_entropy_with_logits(logit, targets.to(logit.dtype), reduction="none")


def cross_entropy(outputs: Float[Tensor, "n classes"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return each sample's loss for a logit per class, and class ids."""
    return F.cross_entropy(_single(outputs), targets, reduction="none")


def squared_error(outputs: Float[Tensor, "n 1"], targets: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return each sample's ``(output - target)^2``, for the head of a regression."""
    return (_single(outputs).squeeze(1) - targets).square()


def _single(outputs: Tensor) -> Tensor:
    """Return outputs of less than single precision (autocast) in single precision: losses are sums of small terms."""
    return outputs if outputs.dtype == torch.float64 else outputs.float()


@dataclass(frozen=True)
class Head:
    """How a model's outputs are read.

    Attributes:
        loss: per-sample loss of outputs ``(n, width)`` and class ids ``(n,)``; of "value", numbers ``(n,)``.
        predict: outputs ``(n, width)`` -> class ids ``(n,)``; of "value", numbers ``(n,)``.
        width: number of classes -> number of outputs.
    """

    loss: SampleLoss
    predict: Callable[[Tensor], Tensor]
    width: Callable[[int], int]


def _one_logit_width(classes: int) -> int:
    if classes != 2:
        raise ValueError(f"the head 'one_logit' is for two classes, the data has {classes}; use 'softmax'")
    return 1


HEADS: dict[HeadName, Head] = {
    "softmax": Head(
        loss=cross_entropy,
        predict=lambda outputs: outputs.argmax(1),
        width=lambda classes: classes,
    ),
    "one_logit": Head(
        loss=binary_cross_entropy,
        predict=lambda outputs: (outputs.squeeze(1) > 0).long(),
        width=_one_logit_width,
    ),
    "value": Head(
        loss=squared_error,
        predict=lambda outputs: outputs.squeeze(1),
        width=lambda classes: 1,
    ),
}
