"""The feasible set of the outer problem and how its budget moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor

from steelyard._support import _check
from steelyard.distributed import ALONE, Ranks
from steelyard.reweight.projections import project_ball, project_box_simplex

__all__ = ["Budget", "ConstraintSet", "budget_of", "check_kinds"]

Budget: TypeAlias = float | int | Callable[[float], float] | None


def budget_of(budget: float | int | None, n: int) -> float:
    """Return K, the number of samples that a budget keeps of `n`.

    What a budget means everywhere: in (0, 1) it is a share of the samples, from 1 on a number of them (so 1.0 is one
    sample, and 0 none), and None is all.

    Raises:
        TypeError, ValueError: it is not a real number, not finite, or negative.

    Example:
        >>> [budget_of(budget, 200) for budget in (0.25, 1.0, 50, None)]
        [50.0, 1.0, 50.0, 200.0]
    """
    return _kept(None if budget is None else _check.in_range("budget", budget, low=0.0), n)


def _kept(budget: float | int | None, n: int) -> float:
    """Return what `budget_of` does, of a budget that is one."""
    if budget is None:
        return float(n)
    return float(budget * n if _is_share(budget) else budget)


def _is_share(budget: float | int | None) -> bool:
    return budget is not None and 0 < budget < 1


@dataclass(frozen=True)
class ConstraintSet:
    """The set C' of MAPLE: {w >= 0, ||w||_p <= radius} x {0 <= s <= 1, sum s = budget (or <= budget)}.

    Attributes:
        budget: K, the expected number of kept samples: that number from 1 on, in (0, 1) a share of the samples, None
            for all of them (see `budget_of`), or a function of progress in [0, 1] that returns one of these.
        equality: hold the sum at K (default). With only an upper bound a penalty without a mean-risk term can
            lower itself by shrinking the kept set, and the outer loop then swings between sets.
        radius: bound on the norm of w, > 0; None: the norm of w = 1, which is n^(1/p). The paper has a bound, its
            code none.
        p: 1 or 2.

    References:
        Zhou et al., ICML 2022, Algorithm 1, line 6.
    """

    budget: Budget
    equality: bool = True
    radius: float | int | None = None
    p: int = 2

    def __post_init__(self) -> None:
        if self.budget is not None and not callable(self.budget):
            _check.store(self, budget=_check.in_range("budget", self.budget, low=0.0))
        if self.radius is not None:
            _check.store(self, radius=_check.in_range("radius", self.radius, low=0.0, open_low=True))
        equality, p = _check.boolean("equality", self.equality), _check.choice("p", self.p, [1, 2])
        _check.store(self, equality=equality, p=p)

    def budget_at(self, progress: float | int, n: int | None = None) -> float:
        """Return K at `progress` in [0, 1], of `n` samples (which a share, and None, ask for).

        Raises:
            ValueError: no `n` for a share; a function that turns from a share into a number or back.
        """
        budget = self.given_budget_at(progress)
        if n is None and (budget is None or _is_share(budget)):
            raise ValueError(f"budget is {budget}, a share of the samples: give n, how many there are")
        return _kept(budget, n or 0)

    def given_budget_at(self, progress: float | int) -> float | int | None:
        """Return the budget at `progress` in [0, 1] as it was given: a share, a number of samples, or None.

        Raises:
            ValueError: a function that turns from a share into a number or back.
        """
        budget = self.budget
        if callable(budget):
            first, budget = budget(0.0), budget(progress)
            check_kinds("budget at progress 0", first, f"at {progress:g}", budget)
            budget = None if budget is None else _check.in_range("budget", budget, low=0.0)
        return budget

    def project_probabilities(
        self, probabilities: Float[Tensor, " n"], progress: float | int = 1.0, ranks: Ranks = ALONE
    ) -> Float[Tensor, " n"]:
        """Return the nearest keep-probabilities in the set, of this rank's share; see `project_box_simplex`."""
        budget = self.budget_at(progress, ranks.count(probabilities.numel()))
        return project_box_simplex(probabilities, budget, equality=self.equality, ranks=ranks)

    def project_weights(self, weights: Float[Tensor, " n"], ranks: Ranks = ALONE) -> Float[Tensor, " n"]:
        """Return the nearest weights in the set, of this rank's share; see `project_ball`."""
        count = ranks.count(weights.numel())
        radius = count ** (1 / self.p) if self.radius is None else self.radius
        return project_ball(weights, radius, p=self.p, ranks=ranks)


def check_kinds(first: str, one: float | int | None, second: str, two: float | int | None) -> None:
    """Raise ValueError where one budget is a share and the other a number of samples."""
    for share, number in ((one, two), (two, one)):
        if _is_share(share) and number is not None and number >= 1:
            raise ValueError(
                f"{first} is {one} and {second} {two}: {share} would be a share of the samples and {number} a number "
                "of them; give both as shares below 1, or both as numbers"
            )
