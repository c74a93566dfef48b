"""Every figure of the page of `steelyard weigh` where the target is a number: errors in place of accuracies."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from steelyard.experiments.training.regression import Errors
from steelyard.experiments.weigh.figures import AllFigures, bounds_of, groups_of, outputs_of, parts_of, weights_of
from steelyard.experiments.weigh.spread import quarters
from steelyard.experiments.weigh.work import Outcome

__all__ = ["ErrorFigures", "ErrorGroup", "ErrorModel", "MeanError", "errors_of"]

_NORMAL = 1.959963984540054  # 95 % of a normal variable lie so many deviations about its mean


@dataclass(frozen=True)
class MeanError:
    """Errors of a model on some rows.

    Attributes:
        mse: the mean squared error, in the square of the target's unit.
        half: 1.96 standard errors of it: it holds the true one between mse - half and mse + half in about 95 of 100
            such samples, where these are large. NaN of fewer than two rows.
        mae: the mean absolute error, in the target's unit.
        r2: the coefficient of determination by the rows' own mean; NaN where their targets are the same.
        count: rows.
    """

    mse: float
    half: float
    mae: float
    r2: float
    count: int


@dataclass(frozen=True)
class ErrorGroup:
    """The errors of a model on the test rows of one group."""

    name: str
    error: MeanError


@dataclass(frozen=True)
class ErrorModel:
    """A model on every split.

    Attributes:
        name: of its method.
        splits: its errors on each split.
        groups: on the test rows of each group.
        worst: the group with the largest mean squared error; the first among equals.
        far: the share of the test rows whose target is further from the prediction than `ErrorFigures.far`.
    """

    name: str
    splits: dict[str, MeanError]
    groups: tuple[ErrorGroup, ...]
    worst: ErrorGroup
    far: float


@dataclass(frozen=True)
class ErrorFigures(AllFigures[ErrorModel]):
    """All of them, of numbers; see `AllFigures`.

    Attributes:
        far: the median distance of the training targets from their median: a prediction that is further off counts as
            a miss, as half of the rows would be if that median were predicted. (Where more than half of the targets are
            the same, their standard deviation.) Wrong targets, if less than half are, hardly move it.
    """

    far: float


def errors_of(outcome: Outcome) -> ErrorFigures:
    """Return the figures of an outcome, of numbers."""
    splits = outcome.splits
    groups, names, grouped_by = groups_of(outcome) or _quarters(outcome)
    far = _far(splits.train.targets.double())
    models = tuple(_measured(outcome, name, model, groups, names, far) for name, model in outcome.models.items())
    weighed = next(model for model in models if model.name == outcome.plan.weighed)
    missed = _missed(*_predicted(outcome, outcome.models[weighed.name], "test"), far)
    rows = {name: len(part) for name, part in parts_of(splits).items()}
    bounds = bounds_of(missed)
    return ErrorFigures(models, weighed, grouped_by, weights_of(outcome), bounds, rows, far * _scale(outcome)[1])


def _scale(outcome: Outcome) -> tuple[float, float]:
    assert outcome.splits.target_scale is not None
    return outcome.splits.target_scale


def _quarters(outcome: Outcome) -> tuple[Int[Tensor, " n"], tuple[str, ...], str]:
    """Return the quarter of the test targets that each test row's is in."""
    mean, deviation = _scale(outcome)
    codes, names = quarters(mean + deviation * outcome.splits.test.targets.double())
    return codes, tuple(names), f"quarter of {outcome.data.target}"


def _measured(
    outcome: Outcome, name: str, model: nn.Module, groups: Int[Tensor, " n"], names: tuple[str, ...], far: float
) -> ErrorModel:
    found = {part: _predicted(outcome, model, part) for part in parts_of(outcome.splits)}
    predicted, targets = found["test"]
    by = tuple(
        ErrorGroup(group, _error(outcome, predicted[groups == code], targets[groups == code]))
        for code, group in enumerate(names)
        if bool((groups == code).any())
    )
    worst = max(by, key=lambda group: group.error.mse)
    errors = {part: _error(outcome, *pair) for part, pair in found.items()}
    return ErrorModel(name, errors, by, worst, float(_missed(predicted, targets, far).double().mean()))


def _predicted(outcome: Outcome, model: nn.Module, part: str) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Return predictions and targets, standardised."""
    data = parts_of(outcome.splits)[part]
    return outputs_of(model, data).squeeze(1), data.targets


def _far(targets: Float[Tensor, " n"]) -> float:
    """Return how far off a prediction has to be to count as a miss, of standardised targets."""
    return _median((targets - _median(targets)).abs()) or 1.0


def _median(values: Float[Tensor, " n"]) -> float:
    ordered = values.sort().values
    return float(ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _missed(predicted: Float[Tensor, " n"], targets: Float[Tensor, " n"], far: float) -> Bool[Tensor, " n"]:
    return (predicted.double() - targets.double()).abs() > far


def _error(outcome: Outcome, predicted: Float[Tensor, " n"], targets: Float[Tensor, " n"]) -> MeanError:
    scale, count = _scale(outcome), len(targets)
    found = Errors.of(predicted, targets, scale, None, 0)
    squares = (scale[1] * (predicted.double() - targets.double())).square()
    half = _NORMAL * float(squares.std()) / math.sqrt(count) if count > 1 else math.nan
    return MeanError(found.mse, half, found.mae, found.r2, count)
