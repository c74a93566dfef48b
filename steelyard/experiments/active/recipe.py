"""Recipes of active learning runs: data, noise, net, schedule, training, selector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from steelyard._support import _check
from steelyard._support._modules import last_linear
from steelyard.experiments.active.choosing import DROPOUT_SELECTORS, SELECTORS
from steelyard.experiments.active.finetuning import FineTuned, FineTuning, MoreEpochs, Tuning
from steelyard.experiments.active.fitting import Epochs, Fit, Fitting
from steelyard.experiments.active.frozen import Encoder, Frozen, Pixels
from steelyard.experiments.active.images import CIFAR10, MNIST, SVHN, Digits
from steelyard.experiments.active.loop import Schedule
from steelyard.experiments.active.moons import FourMoons
from steelyard.experiments.active.noise import Noise, NoNoise
from steelyard.experiments.data.splits import Splits
from steelyard.experiments.models import Model
from steelyard.experiments.runs.recipe import names_in, read_table
from steelyard.experiments.runs.schema import parse
from steelyard.experiments.training.adversarial import PGD

__all__ = ["ActiveRecipe", "active_recipe_names", "load_active_recipe", "with_dropout"]

_SHIPPED = Path(__file__).parent / "recipes"

ActiveData: TypeAlias = FourMoons | Digits | MNIST | CIFAR10 | SVHN


@dataclass(frozen=True)
class ActiveRecipe:
    """An active learning run.

    Attributes:
        data: the data set and its settings.
        model: the net; its head must be "softmax".
        noise: what is added to the pool.
        encoder: what the net sees of the images and the noise: their pixels, or features of a frozen network.
        selector: who picks, one of `SELECTORS`.
        schedule: how many samples are labelled when.
        epochs: how long a round trains (Algorithm 1).
        decay: of the moving average of the weights.
        start: whether each round trains a new net ("scratch") or continues the one before ("warm").
        attack: against each step of a round's training, not of its fine-tuning (robust active learning); of radius 0,
            the default, none.
        measure: the attack under which a round's accuracy is measured too; of radius 0, the default, it is not.
        fine_tune: whether a round ends with fine-tuning.
        fine_tuning: which one, with its settings: "with_labelled" (the default), "paper" (Algorithm 2 of LHD's
            paper), or the control "more_epochs".
        dropout: probability of the dropout in front of the net's last layer; 0: none. BALD and dropout entropy need it.
        seed: of the data split, the noise and every round.
        device: where to train, a torch device.
    """

    data: ActiveData
    model: Model
    noise: Noise = field(default_factory=NoNoise)
    encoder: Encoder = field(default_factory=Pixels)
    selector: str = "lhd"
    schedule: Schedule = field(default_factory=Schedule)
    epochs: Epochs = field(default_factory=Epochs)
    decay: float = 0.999
    start: Literal["scratch", "warm"] = "scratch"
    attack: PGD = field(default_factory=lambda: PGD(epsilon=0.0))
    measure: PGD = field(default_factory=lambda: PGD(epsilon=0.0))
    fine_tune: bool = False
    fine_tuning: Tuning = field(default_factory=FineTuning)
    dropout: float = 0.0
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        _check.integer("seed", self.seed, low=0, high=2**63 - 1)
        _check.choice("selector", self.selector, SELECTORS)
        _check.in_range("decay", self.decay, low=0.0, high=1.0, open_high=True)
        _check.in_range("dropout", self.dropout, low=0.0, high=1.0, open_high=True)
        if self.model.head != "softmax":
            raise ValueError(f"model.head must be 'softmax' for active learning, got {self.model.head!r}")
        if self.selector in DROPOUT_SELECTORS and not self.dropout:
            raise ValueError(f"the selector {self.selector!r} needs dropout: set dropout to a probability above 0")
        if self.fine_tune and not isinstance(self.fine_tuning, MoreEpochs):
            if isinstance(self.data, FourMoons):
                raise ValueError("fine_tune augments images, and four_moons has none: set fine_tune = false")
            if isinstance(self.encoder, Frozen):
                raise ValueError("fine_tune augments images, and a frozen encoder leaves none: set fine_tune = false")
        try:
            torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(f"device must be a torch device such as 'cpu' or 'cuda:0', got {self.device!r}") from error

    @staticmethod
    def upgraded(table: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the recipe of an older run's folder as it is written today.

        Fine-tuning was Algorithm 2 then, and what is `unique` now was called `colours` for Noisy-Diverse.
        """
        found, tuning, noise = dict(table), table.get("fine_tuning"), table.get("noise")
        if isinstance(tuning, Mapping) and "name" not in tuning:
            found["fine_tuning"] = {"name": "paper", **tuning}
        if isinstance(noise, Mapping) and "colours" in noise:
            found["noise"] = {"unique" if key == "colours" else key: value for key, value in noise.items()}
        return found

    @property
    def label(self) -> str:
        """What tables call the method: LHD, or LHD + FT with fine-tuning."""
        return self.selector.upper() + (" + FT" if self.fine_tune else "")

    def build(self, splits: Splits, seed: int) -> nn.Module:
        """Return a new net for `splits`, on their device; the same `seed` gives the same parameters."""
        inputs = splits.train.inputs
        model = self.model.build(tuple(inputs.shape[1:]), len(splits.classes), seed)
        return with_dropout(model, self.dropout).to(inputs.device)

    def fit(self, splits: Splits) -> Fit:
        """Return how a round of this recipe trains, on the device of `splits`."""
        first = Fitting(lambda seed: self.build(splits, seed), self.epochs, self.decay, self.start, self.attack)
        return FineTuned(first, self.fine_tuning, replace(first, start="warm")) if self.fine_tune else first


def with_dropout(model: nn.Module, probability: float) -> nn.Module:
    """Put dropout in front of the last `nn.Linear` of `model`, in place, and return it; 0: as it is.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> [type(layer).__name__ for layer in with_dropout(net, 0.5)[2]]
        ['Dropout', 'Linear']
    """
    if probability:
        last = last_linear(model)
        parent, name = next(
            (module, name) for module in model.modules() for name, child in module.named_children() if child is last
        )
        setattr(parent, name, nn.Sequential(nn.Dropout(probability), last))
    return model


def active_recipe_names() -> list[str]:
    """Return the names of the recipes shipped, sorted."""
    return names_in(_SHIPPED)


def load_active_recipe(name: str, overrides: Sequence[str] = (), seed: int | None = None) -> ActiveRecipe:
    """Return a recipe by its name or the path of a .toml file; arguments and errors as in `load_recipe`.

    Example:
        >>> load_active_recipe("digits", ["selector=conf"], seed=2).label
        'CONF'
    """
    table, source = read_table(name, _SHIPPED, overrides, seed)
    return parse(ActiveRecipe, table, source)
