"""Models by name, and the output heads: what a loss and a decision are for one logit or for several."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from steelyard import _check
from steelyard.bilevel.objective import SampleLoss

__all__ = ["HEADS", "MLP", "Head", "HeadName", "Logistic", "Model", "binary_cross_entropy", "cross_entropy"]

HeadName: TypeAlias = Literal["one_logit", "softmax"]


def binary_cross_entropy(outputs: Float[Tensor, "n 1"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return each sample's loss for one logit, the log-odds of class 1, and class ids 0 or 1."""
    logit = _single(outputs).squeeze(1)
    return F.binary_cross_entropy_with_logits(logit, targets.to(logit.dtype), reduction="none")


def cross_entropy(outputs: Float[Tensor, "n classes"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return each sample's loss for a logit per class, and class ids."""
    return F.cross_entropy(_single(outputs), targets, reduction="none")


def _single(outputs: Tensor) -> Tensor:
    """Return outputs of less than single precision (autocast) in single precision: losses are sums of small terms."""
    return outputs if outputs.dtype == torch.float64 else outputs.float()


@dataclass(frozen=True)
class Head:
    """How a model's outputs are read.

    Attributes:
        loss: per-sample loss of outputs ``(n, width)`` and class ids ``(n,)``.
        predict: outputs ``(n, width)`` -> class ids ``(n,)``.
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
}


@dataclass(frozen=True)
class MLP:
    """A multilayer perceptron on the flattened input: ReLU, Xavier-uniform weights, zero biases.

    With ``hidden = (390, 390)`` and the head "one_logit" this is the net of Colored MNIST's authors (392-390-390-1).
    """

    name: Literal["mlp"] = "mlp"
    hidden: tuple[int, ...] = (390, 390)
    head: HeadName = "one_logit"

    def __post_init__(self) -> None:
        for width in self.hidden:
            _check.integer("hidden", width, low=1)

    def build(self, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
        """Return the net for inputs of `shape`; the same `seed` gives the same parameters, whatever ran before."""
        generator = torch.Generator().manual_seed(seed)
        widths = (math.prod(shape), *self.hidden, HEADS[self.head].width(classes))
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in itertools.pairwise(widths):
            linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
            nn.init.xavier_uniform_(linear.weight, generator=generator)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.ReLU()]
        return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class Logistic:
    """A linear model on the flattened input: Xavier-uniform weights, zero biases."""

    name: Literal["logistic"] = "logistic"
    head: HeadName = "one_logit"

    def build(self, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
        """Return the model for inputs of `shape`, its parameters drawn from `seed`."""
        return MLP(hidden=(), head=self.head).build(shape, classes, seed)


Model = MLP | Logistic
