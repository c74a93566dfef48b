"""What a method is given (`Problem`) and what it gives back (`Fitted`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn

from steelyard.bilevel.objective import SampleLoss
from steelyard.experiments.data import Splits
from steelyard.experiments.models import HEADS, Head, Model
from steelyard.reweight import Reweighting

__all__ = ["Fitted", "Observer", "Problem", "silent"]


@runtime_checkable
class Observer(Protocol):
    """Called by a method at each step that it wants measured."""

    def __call__(self, step: int, model: nn.Module, extra: Mapping[str, float]) -> None:
        """Measure `model` after `step` steps (from 1); `extra` holds the method's own figures."""
        ...


def silent(step: int, model: nn.Module, extra: Mapping[str, float]) -> None:
    """Measure nothing: the observer of a training whose model is not yet the method's."""


@dataclass(frozen=True)
class Problem:
    """A data set, a model for it, and a seed.

    Attributes:
        splits: the samples, on the device where training happens.
        model_settings: which model.
        seed: of initial parameters and of whatever a method draws. Methods make their own generators from it.
    """

    splits: Splits
    model_settings: Model
    seed: int

    @property
    def head(self) -> Head:
        """How the model's outputs are read."""
        return HEADS[self.model_settings.head]

    @property
    def loss(self) -> SampleLoss:
        """The per-sample loss."""
        return self.head.loss

    def model(self) -> nn.Module:
        """Return a new model; each call gives the same initial parameters."""
        inputs = self.splits.train.inputs
        model = self.model_settings.build(tuple(inputs.shape[1:]), len(self.splits.classes), self.seed)
        return model.to(inputs.device)


@dataclass(frozen=True)
class Fitted:
    """What a method ends with: the final model and, where sample weights were learned, these."""

    model: nn.Module
    reweighting: Reweighting | None = None
