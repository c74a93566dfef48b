"""The feasible set of the outer problem and how its budget moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from steelyard import _check
from steelyard.distributed import ALONE, Ranks
from steelyard.reweight.projections import project_ball, project_box_simplex

__all__ = ["ConstraintSet", "CubicBudget"]


@dataclass(frozen=True)
class CubicBudget:
    """Budget over the outer run: `start` at first, then a cubic fall to `target`, then constant.

    The MAPLE authors' schedule: constant until 0.16 of the run, at the target from 0.6 on.

    Attributes:
        start: K at progress 0.
        target: K at the end.
        ramp_start: progress in [0, 1] at which K begins to move.
        ramp_end: progress in (ramp_start, 1] from which K stays at `target`.

    Example:
        >>> budget = CubicBudget(start=100, target=20)
        >>> [budget(progress) for progress in (0.0, 0.38, 1.0)]
        [100.0, 30.0, 20.0]
    """

    start: float | int
    target: float | int
    ramp_start: float | int = 0.16
    ramp_end: float | int = 0.6

    def __post_init__(self) -> None:
        _check.in_range("start", self.start, low=0.0)
        _check.in_range("target", self.target, low=0.0)
        _check.in_range("ramp_start", self.ramp_start, low=0.0, high=1.0)
        _check.in_range("ramp_end", self.ramp_end, low=self.ramp_start, high=1.0, open_low=True)

    def __call__(self, progress: float | int) -> float:
        """Return K at `progress` in [0, 1]."""
        _check.in_range("progress", progress, low=0.0, high=1.0)
        left = (self.ramp_end - progress) / (self.ramp_end - self.ramp_start)
        return self.target + (self.start - self.target) * min(max(left, 0.0), 1.0) ** 3


@dataclass(frozen=True)
class ConstraintSet:
    """The set C' of MAPLE: {w >= 0, ||w||_p <= radius} x {0 <= s <= 1, sum s = budget (or <= budget)}.

    Attributes:
        budget: K, the expected number of kept samples: a number, or a function of progress in [0, 1].
        equality: hold the sum at K (default). With only an upper bound a penalty without a mean-risk term can
            lower itself by shrinking the kept set, and the outer loop then swings between sets.
        radius: bound on the norm of w, > 0; None: the norm of w = 1, which is n^(1/p). The paper has a bound, its
            code none.
        p: 1 or 2.

    References:
        Zhou et al., ICML 2022, Algorithm 1, line 6.
    """

    budget: float | int | Callable[[float], float]
    equality: bool = True
    radius: float | int | None = None
    p: int = 2

    def __post_init__(self) -> None:
        if not callable(self.budget):
            _check.in_range("budget", self.budget, low=0.0)
        _check.boolean("equality", self.equality)
        if self.radius is not None:
            _check.in_range("radius", self.radius, low=0.0, open_low=True)
        _check.choice("p", self.p, [1, 2])

    def budget_at(self, progress: float | int) -> float:
        """Return K at `progress` in [0, 1]."""
        return float(self.budget(progress) if callable(self.budget) else self.budget)

    def project_probabilities(
        self, probabilities: Float[Tensor, " n"], progress: float | int = 1.0, ranks: Ranks = ALONE
    ) -> Float[Tensor, " n"]:
        """Return the nearest keep-probabilities in the set, of this rank's share; see `project_box_simplex`."""
        return project_box_simplex(probabilities, self.budget_at(progress), equality=self.equality, ranks=ranks)

    def project_weights(self, weights: Float[Tensor, " n"], ranks: Ranks = ALONE) -> Float[Tensor, " n"]:
        """Return the nearest weights in the set, of this rank's share; see `project_ball`."""
        count = sum(ranks.lengths(weights.numel()))
        radius = count ** (1 / self.p) if self.radius is None else self.radius
        return project_ball(weights, radius, p=self.p, ranks=ranks)
