"""Which evaluated step stands for a run: criteria that see training and validation figures only.

A `Criterion` receives a list of `Visible`, a type that has no test figures; there is nothing to leak. The one
selection by test figures, `best_on_test`, is a function of its own over the full `Evaluation`, made for one table
column that says so. None of them chooses a step whose loss is NaN or infinite, unless there is no other.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, runtime_checkable

from steelyard._support import _check
from steelyard.experiments.errors import RecipeError
from steelyard.experiments.training.evaluation import Evaluation, Visible

__all__ = [
    "CRITERIA",
    "KNOWN",
    "Criterion",
    "Last",
    "Scored",
    "ValidationExtrapolated",
    "ValidationLoss",
    "ValidationMean",
    "ValidationPenalty",
    "ValidationWorstClass",
    "ValidationWorstEnvironment",
    "ValidationWorstEnvironmentLoss",
    "ValidationWorstGroup",
    "ValidationWorstGroupError",
    "best_on_test",
    "check_regression",
    "check_selection",
    "criterion",
]


@runtime_checkable
class Criterion(Protocol):
    """Chooses one of a run's evaluations by what may be seen."""

    def __call__(self, history: Sequence[Visible]) -> int:
        """Return the position in `history` (at least one entry) of the chosen evaluation."""
        ...


@dataclass(frozen=True)
class Last:
    """The last evaluation: nothing is selected."""

    def __call__(self, history: Sequence[Visible]) -> int:
        """Return the last position."""
        return len(history) - 1


class Scored(ABC):
    """A criterion with a number for each evaluation, the higher the better: the highest is taken, the first of equals.

    By the number runs are compared, too. NaN: the evaluation cannot be chosen, unless there is no other.

    Attributes:
        of_loss: whether it looks at losses or errors, which a regression has, and not at accuracies.
    """

    of_loss: ClassVar[bool] = False

    @abstractmethod
    def score(self, seen: Visible) -> float:
        """Return the number."""

    def __call__(self, history: Sequence[Visible]) -> int:
        """Return the position of the highest number; steps that diverged are passed over, if not all."""
        scores = {k: self.score(seen) for k, seen in enumerate(history) if seen.finite}
        real = [k for k, value in scores.items() if not math.isnan(value)]
        return max(real, key=scores.__getitem__, default=len(history) - 1)


@dataclass(frozen=True)
class ValidationMean(Scored):
    """The highest validation accuracy."""

    def score(self, seen: Visible) -> float:
        """Return the accuracy."""
        return seen.validation.accuracy


@dataclass(frozen=True)
class ValidationWorstEnvironment(Scored):
    """The highest validation accuracy in the worst of the training environments."""

    def score(self, seen: Visible) -> float:
        """Return the worst environment's accuracy."""
        return min(_environments(seen))


@dataclass(frozen=True)
class ValidationWorstGroup(Scored):
    """The highest validation accuracy in the worst group, as the papers on group shifts select; needs group labels.

    Among equals the first: a small worst group makes ties likely.
    """

    def score(self, seen: Visible) -> float:
        """Return the worst group's accuracy; RecipeError if groups are not known."""
        return _worst_group(seen)


@dataclass(frozen=True)
class ValidationWorstClass(Scored):
    """The highest validation accuracy in the worst class: what can be asked where groups are known nowhere.

    So selects SubpopBench where attributes are unknown (Yang et al. 2023, section 4.3).
    """

    def score(self, seen: Visible) -> float:
        """Return the worst class's accuracy; RecipeError for figures of an earlier version, which lack it."""
        accuracy = seen.validation.worst_class_accuracy
        if accuracy is None:
            raise RecipeError(_NO_CLASSES)
        return accuracy


@dataclass(frozen=True)
class ValidationExtrapolated(Scored):
    """The highest validation accuracy in the worst affine mixture of the training environments.

    With accuracies a_e, the mixture weights sum to one and none is below ``-beta``; the worst mixture has accuracy
    ``(1 + m beta) min_e a_e - beta sum_e a_e`` for m environments. This is the criterion of risk extrapolation
    (Krueger et al. 2021, MM-REx, equation 7) on accuracies: beta = 0 is `ValidationWorstEnvironment`, more asks
    that accuracies agree across environments. It is noisy: the standard error of a difference is multiplied by beta.
    """

    beta: float = 1.0

    def __post_init__(self) -> None:
        _check.in_range("beta", self.beta, low=0.0)

    def score(self, seen: Visible) -> float:
        """Return the accuracy in the worst mixture."""
        accuracies = _environments(seen)
        return (1 + len(accuracies) * self.beta) * min(accuracies) - self.beta * sum(accuracies)


@dataclass(frozen=True)
class ValidationPenalty(Scored):
    """The lowest IRMv1 or V-REx penalty on validation, among evaluations that predict well enough.

    A constant prediction has no penalty at all, so a floor for the training accuracy goes with it; where no evaluation
    reaches the floor (or where there are no two environments, and so no penalty) the last one is taken.
    """

    penalty: str = "irmv1"
    floor: float = 0.6

    def __post_init__(self) -> None:
        _check.choice("penalty", self.penalty, ("irmv1", "vrex"))
        _check.in_range("floor", self.floor, low=0.0, high=1.0)

    def score(self, seen: Visible) -> float:
        """Return the penalty below zero; NaN under the floor."""
        value = getattr(seen.validation, self.penalty)  # None where there is only one environment
        return -value if value is not None and seen.train.accuracy >= self.floor else math.nan


@dataclass(frozen=True)
class ValidationLoss(Scored):
    """The lowest mean loss on validation."""

    of_loss: ClassVar[bool] = True

    def score(self, seen: Visible) -> float:
        """Return the loss below zero."""
        return -seen.validation.loss


@dataclass(frozen=True)
class ValidationWorstEnvironmentLoss(Scored):
    """The lowest loss on validation in the worst of the training environments."""

    of_loss: ClassVar[bool] = True

    def score(self, seen: Visible) -> float:
        """Return the worst environment's loss below zero."""
        if not seen.validation.environment_loss:
            raise RecipeError(_NO_ENVIRONMENTS)
        return -max(seen.validation.environment_loss)


@dataclass(frozen=True)
class ValidationWorstGroupError(ValidationWorstGroup):
    """The lowest mean squared error on validation in the worst group, of a regression; needs groups."""

    of_loss: ClassVar[bool] = True

    def score(self, seen: Visible) -> float:
        """Return the worst group's error below zero; RecipeError if groups are not known, or it is no regression."""
        worst = None if seen.validation.errors is None else seen.validation.errors.worst_group_mse
        if worst is None:
            raise RecipeError("selection 'validation_worst_group_error' needs a regression with groups on validation")
        return -worst


_NO_CLASSES = (
    "selection 'validation_worst_class' needs the accuracy of each class on validation, which these figures do not "
    "have: an earlier version made them; take 'validation_mean', or run it again"
)

_NO_GROUPS = (
    "selection 'validation_worst_group' needs group labels on validation, which this data set does not have; "
    "take 'validation_worst_environment' or 'validation_mean'"
)

_NO_ENVIRONMENTS = (
    "this selection needs the figures of each environment on validation, which are not there; take 'validation_mean'"
)

CRITERIA: dict[str, Criterion] = {
    "last": Last(),
    "validation_mean": ValidationMean(),
    "validation_worst_environment": ValidationWorstEnvironment(),
    "validation_worst_group": ValidationWorstGroup(),
    "validation_worst_class": ValidationWorstClass(),
    "validation_extrapolated": ValidationExtrapolated(),
    "validation_loss": ValidationLoss(),
    "validation_worst_environment_loss": ValidationWorstEnvironmentLoss(),
    "validation_worst_group_error": ValidationWorstGroupError(),
    "validation_irmv1": ValidationPenalty("irmv1"),
    "validation_vrex": ValidationPenalty("vrex"),
}


KNOWN = {
    "training": "validation_worst_group",
    "validation": "validation_worst_group",
    "nowhere": "validation_worst_class",
}
"""Where groups are known -> the criterion, as in SubpopBench (Yang et al. 2023, section 4 and its code)."""


def criterion(name: str, floor: float) -> Criterion:
    """Return the criterion called `name` in `CRITERIA`, with the floor `floor` if it has one."""
    chosen = CRITERIA[_check.choice("selection", name, CRITERIA)]
    return replace(chosen, floor=floor) if isinstance(chosen, ValidationPenalty) else chosen


def check_selection(name: str, groups: Sequence[str]) -> None:
    """Raise RecipeError, before anything is trained, if the criterion `name` needs groups and the data has none."""
    if isinstance(CRITERIA[name], ValidationWorstGroup) and not groups:
        raise RecipeError(_NO_GROUPS)


def check_regression(name: str) -> None:
    """Raise ValueError if the criterion `name` looks at accuracies, which a regression does not have."""
    chosen = CRITERIA[name]
    if isinstance(chosen, Scored) and not chosen.of_loss:
        known = [name for name, one in CRITERIA.items() if not isinstance(one, Scored) or one.of_loss]
        raise ValueError(f"selection {name!r} looks at accuracies, which a regression has not; take {', '.join(known)}")


def best_on_test(history: Sequence[Evaluation], floor: float) -> int:
    """Return the position of the highest TEST accuracy among those with training accuracy at or above `floor`.

    For comparison with papers that select so, and for nothing else; tables label the column. No evaluation above the
    floor: the last position. In a regression it is the lowest TEST loss.
    """
    if history and history[0].test.errors is not None:
        return min(range(len(history)), key=lambda k: history[k].test.loss)
    visible = [evaluation.visible for evaluation in history]
    fit = [k for k, seen in enumerate(visible) if seen.finite and seen.train.accuracy >= floor]
    return max(fit, key=lambda k: history[k].test.accuracy) if fit else len(history) - 1


def _environments(seen: Visible) -> tuple[float, ...]:
    accuracies = seen.validation.environment_accuracy
    if not accuracies:
        raise RecipeError(_NO_ENVIRONMENTS)
    return accuracies


def _worst_group(seen: Visible) -> float:
    accuracy = seen.validation.worst_group_accuracy
    if accuracy is None:
        raise RecipeError(_NO_GROUPS)
    return accuracy
