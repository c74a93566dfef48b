"""Every figure of the page of `steelyard weigh`, from the written weights, the written models and the user's table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from steelyard.bilevel.batch import Batch
from steelyard.experiments.data import Splits
from steelyard.experiments.training.calibration import binomial_interval, calibration_error, confidence
from steelyard.experiments.weigh.plan import PLAIN
from steelyard.experiments.weigh.work import Outcome
from steelyard.theory import HypothesisBound, finite_class_bounds

__all__ = [
    "Accuracy",
    "AllFigures",
    "Calibration",
    "Figures",
    "Group",
    "ModelFigures",
    "Weights",
    "bounds_of",
    "figures_of",
    "groups_of",
    "outputs_of",
    "parts_of",
    "weights_of",
]

BINS = 10  # of the calibration
_DELTA = 0.05
_BATCH = 16  # s of the bound
_TOPS = (16, 8, 4)  # q of the bound: all losses, the worst half, the worst quarter
_DRAWS = 1000
_CHUNK = 10_000


@dataclass(frozen=True)
class Accuracy:
    """A share of right predictions, with the interval that 95 in 100 such measurements hold the truth in."""

    right: int
    count: int

    @property
    def share(self) -> float:
        """The accuracy."""
        return self.right / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval, 95 %."""
        return binomial_interval(self.right, self.count)


@dataclass(frozen=True)
class Group:
    """The accuracy of a model on the test rows of one group."""

    name: str
    accuracy: Accuracy


@dataclass(frozen=True)
class Calibration:
    """A model's confidence beside its accuracy on the test rows, in bins of equal width.

    Attributes:
        error: the expected calibration error.
        bins: for each bin that has rows: from, to, rows, mean confidence, accuracy.
    """

    error: float
    bins: tuple[tuple[float, float, int, float, float], ...]


@dataclass(frozen=True)
class ModelFigures:
    """A model on every split.

    Attributes:
        name: of its method.
        splits: its accuracy on each split.
        groups: on the test rows of each group.
        worst: the group with the lowest accuracy; the first among equals.
        calibration: on the test rows.
    """

    name: str
    splits: dict[str, Accuracy]
    groups: tuple[Group, ...]
    worst: Group
    calibration: Calibration


@dataclass(frozen=True)
class Weights:
    """How the weights spread over the training rows; a row counts by s w, weight times keep-probability.

    Attributes:
        count: rows.
        kept: the sum of the keep-probabilities.
        effective: (sum s w)^2 / sum (s w)^2, the rows that would weigh as much were all weighed alike.
        light: rows whose s w is below half of the mean.
    """

    count: int
    kept: float
    effective: float
    light: int


@runtime_checkable
class _Named(Protocol):
    """The figures of one method's model."""

    @property
    def name(self) -> str:
        """The method's."""


OfModel = TypeVar("OfModel", bound=_Named)


@dataclass(frozen=True)
class AllFigures(Generic[OfModel]):
    """All of them, of classes or of numbers.

    Attributes:
        models: of each method, ordinary training first; test rows decide nothing.
        weighed: that of the written model.
        grouped_by: what the groups are.
        weights: how the weights spread.
        bounds: what the top-q bound says of the written model's errors (of numbers: its misses) on the test rows, q
            falling.
        rows: the number of rows in each split.
    """

    models: tuple[OfModel, ...]
    weighed: OfModel
    grouped_by: str
    weights: Weights
    bounds: tuple[HypothesisBound, ...]
    rows: dict[str, int]

    @property
    def plain(self) -> OfModel:
        """Those of ordinary training."""
        return next(model for model in self.models if model.name == PLAIN)


class Figures(AllFigures[ModelFigures]):
    """All of them, of classes."""


def figures_of(outcome: Outcome) -> Figures:
    """Return the figures of an outcome, of classes."""
    splits = outcome.splits
    found = groups_of(outcome) or (splits.test.targets, splits.classes, "class")
    models = tuple(_measured(outcome, name, model, found[0], found[1]) for name, model in outcome.models.items())
    weighed = next(model for model in models if model.name == outcome.plan.weighed)
    wrong = ~_right(outcome.models[weighed.name], splits.test)[0]
    rows = {name: len(part) for name, part in parts_of(splits).items()}
    return Figures(models, weighed, found[2], weights_of(outcome), bounds_of(wrong), rows)


def parts_of(splits: Splits) -> dict[str, Batch]:
    """Return the splits by name."""
    return {"train": splits.train, "validation": splits.validation, "test": splits.test}


def groups_of(outcome: Outcome) -> tuple[Int[Tensor, " n"], tuple[str, ...], str] | None:
    """Return the group of each test row, the names, and what they are: groups or environments; None without these."""
    splits, test = outcome.splits, outcome.splits.test
    if splits.groups and test.group is not None:
        return test.group, splits.groups, "group"
    if len(splits.environments) > 1 and test.environment is not None:
        return test.environment, splits.environments, "environment"
    return None


def _measured(
    outcome: Outcome, name: str, model: nn.Module, groups: Int[Tensor, " n"], names: tuple[str, ...]
) -> ModelFigures:
    found = {part: _right(model, data) for part, data in parts_of(outcome.splits).items()}
    right, sure = found["test"]
    by = tuple(
        Group(group, Accuracy(int(right[groups == code].sum()), int((groups == code).sum())))
        for code, group in enumerate(names)
        if bool((groups == code).any())
    )
    worst = min(by, key=lambda group: group.accuracy.share)
    shares = {part: Accuracy(int(one.sum()), len(one)) for part, (one, _) in found.items()}
    return ModelFigures(name, shares, by, worst, _calibration(right, sure))


def _right(model: nn.Module, data: Batch) -> tuple[Bool[Tensor, " n"], Float[Tensor, " n"]]:
    """Return where the model is right, and how sure it is."""
    outputs = outputs_of(model, data)
    return outputs.argmax(1) == data.targets, confidence(outputs)


def outputs_of(model: nn.Module, data: Batch) -> Float[Tensor, "n outputs"]:
    """Return what a model says of some rows; it is in evaluation mode."""
    with torch.no_grad():
        return torch.cat([model(part.inputs) for part in data.chunks(_CHUNK)])


def _calibration(right: Bool[Tensor, " n"], sure: Float[Tensor, " n"]) -> Calibration:
    place = (sure.double() * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
    bins = []
    for number in range(BINS):
        member = place == number
        if count := int(member.sum()):
            means = (float(sure[member].double().mean()), float(right[member].double().mean()))
            bins.append((number / BINS, (number + 1) / BINS, count, *means))
    return Calibration(calibration_error(sure, right, BINS), tuple(bins))


def weights_of(outcome: Outcome) -> Weights:
    """Return how the weights spread over the training rows."""
    found = outcome.reweighting
    seen = found.expected_weights.double()
    effective = float(seen.sum() ** 2 / seen.square().sum().clamp(min=1e-300))
    light = int((seen < seen.mean() / 2).sum())
    return Weights(len(seen), float(found.probabilities.double().sum()), effective, light)


def bounds_of(wrong: Bool[Tensor, " n"]) -> tuple[HypothesisBound, ...]:
    """Return the top-q bounds of the 0-1 loss; the model was fixed before a test row was looked at."""
    batch = min(_BATCH, len(wrong))
    return tuple(
        finite_class_bounds(
            wrong.double()[None],
            s=batch,
            q=min(top, batch),
            delta=_DELTA,
            loss_range=1.0,
            draws=_DRAWS,
            generator=torch.Generator().manual_seed(0),
            fixed=True,
        )[0]
        for top in _TOPS
    )
