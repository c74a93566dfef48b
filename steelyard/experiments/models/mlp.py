"""Multilayer perceptrons and the linear model."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from steelyard._support import _check
from steelyard.experiments.models.heads import HEADS, HeadName

__all__ = ["MLP", "Logistic"]


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
