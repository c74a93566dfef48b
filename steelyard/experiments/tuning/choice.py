"""Which trial is taken: by what validation says at the step that the same criterion prefers; test figures stay out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from steelyard.experiments.errors import RecipeError
from steelyard.experiments.training.evaluation import Visible
from steelyard.experiments.training.selection import Criterion, Scored

__all__ = ["REGRESSION", "Reached", "best", "reached", "scored"]

REGRESSION = {
    "training": "validation_worst_group_error",
    "validation": "validation_worst_group_error",
    "nowhere": "validation_loss",
}
"""As `selection.KNOWN`, for a target that is a number, which has no classes."""


@dataclass(frozen=True)
class Reached:
    """What a trial has reached.

    Attributes:
        chosen: of each seed's run the evaluation at the step that the criterion prefers.
        score: the mean of the criterion's scores there over seeds, higher is better; NaN where a run has none.
    """

    chosen: tuple[Visible, ...]
    score: float


def scored(criterion: Criterion, name: str) -> Scored:
    """Return the criterion if it has a score, by which trials can be compared.

    Raises:
        RecipeError: it selects nothing.
    """
    if not isinstance(criterion, Scored):
        raise RecipeError(
            f"selection {name!r} prefers nothing, so no trial is better than another; set a criterion, as in --set "
            "selection=validation_mean, or --groups"
        )
    return criterion


def reached(histories: Sequence[Sequence[Visible]], criterion: Scored) -> Reached:
    """Return what a trial has reached whose runs, one for each seed, have these evaluations.

    The step is chosen in each run as early stopping chooses it: by the criterion that compares trials, too.
    """
    chosen = tuple(history[criterion(history)] for history in histories)
    scores = [criterion.score(one) if one.finite else math.nan for one in chosen]
    return Reached(chosen, statistics.fmean(scores))


def best(trials: Sequence[Reached | None]) -> int | None:
    """Return the position of the highest score, the first among equals; None where no trial has one."""
    scores = {k: one.score for k, one in enumerate(trials) if one is not None and not math.isnan(one.score)}
    return max(scores, key=scores.__getitem__, default=None)
