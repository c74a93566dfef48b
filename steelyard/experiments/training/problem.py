"""What a method is given (`Problem`) and what it gives back (`Fitted`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from steelyard.bilevel.batch import Batch
from steelyard.bilevel.objective import SampleLoss
from steelyard.checkpoint import Journal
from steelyard.distributed import ALONE, Ranks
from steelyard.experiments.data import Splits
from steelyard.experiments.models import HEADS, Head, Model
from steelyard.reweight import Reweighting
from steelyard.reweight.outer_risk import labels_of_all

__all__ = ["Fitted", "Latest", "Observer", "Problem", "silent"]


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
        journal: where training writes its checkpoints, and reads those of a run that it resumes; by default
            nowhere.
        directory: the run's, where a method may file what it computed before training; None: nothing is filed.
        ranks: the processes that train together; `splits` are then this one's `Shares`.
    """

    splits: Splits
    model_settings: Model
    seed: int
    journal: Journal = field(default_factory=Journal, compare=False, repr=False)
    directory: Path | None = field(default=None, compare=False, repr=False)
    ranks: Ranks = field(default=ALONE, compare=False, repr=False)

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
        train = self.splits.train
        model = self.model_settings.build(tuple(train.inputs.shape[1:]), len(self.splits.classes), self.seed)
        return model.to(train.index.device)  # where the samples are; images that stay on disk are nowhere

    def of_all(self, data: Batch) -> Batch:
        """Return the samples of all ranks, of which `data` is this one's share, without inputs; alone `data` itself."""
        return labels_of_all(data, self.ranks)


class Latest:
    """The latest model of a method whose steps each make one, to be carried by its stage.

    Args:
        make: makes a model for what was kept.

    Attributes:
        model: the model; None before the first step.
    """

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        self.model: nn.Module | None = None
        self._make = make

    def state_dict(self) -> dict[str, Any]:
        """Return the model's state."""
        return {"model": None if self.model is None else self.model.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        if state["model"] is not None:
            self.model = self._make()
            self.model.load_state_dict(state["model"])


@dataclass(frozen=True)
class Fitted:
    """What a method ends with: the final model and, where sample weights were learned, these.

    Attributes:
        model: the final one.
        reweighting: weights and keep-probabilities.
        columns: further columns ``(n,)`` of the run's table of samples, where there are weights.
        facts: how it was computed, where that is to be told: title -> in words, for the run's record.
    """

    model: nn.Module
    reweighting: Reweighting | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
