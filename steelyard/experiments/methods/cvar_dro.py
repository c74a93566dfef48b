"""CVaR-DRO: the mean loss of the worst share of the samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from steelyard import reweight
from steelyard.experiments.methods._base import TrainedMethod
from steelyard.experiments.training.problem import Fitted, Observer, Problem
from steelyard.experiments.training.ranges import SUBPOPBENCH, Range
from steelyard.experiments.training.trainer import Training, train

__all__ = ["CVaRDRO"]


@dataclass(frozen=True)
class CVaRDRO(TrainedMethod):
    """CVaR-DRO (Rockafellar and Uryasev 2000; Levy et al. 2020, arXiv:2010.05893, for batches).

    ``min_theta max_q { sum_i q_i l_i : sum_i q_i = 1, 0 <= q_i <= 1 / (alpha n) }``, taken on each batch: the mean of
    its alpha b largest losses, the last of them in part (`reweight.CVaR`). On batches this is biased low; the bias
    falls with the batch size, and a full batch has none.
    Labels needed: class. Published settings for Waterbirds and CelebA (in the comparisons of later papers): alpha was
    chosen by worst-group validation accuracy, which needs groups there.

    Attributes:
        alpha: the share, in (0, 1]; 1 is ERM. Wrong labels are among the largest losses: a share below their rate
            trains on little else.
    """

    regression: ClassVar[bool] = True
    name: Literal["cvar_dro"] = "cvar_dro"
    alpha: Annotated[float, Range.log10(-2, 0, SUBPOPBENCH)] = 0.5
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        reweight.CVaR(self.alpha)

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Train and return the last model."""
        return Fitted(train(problem, self.training, observe, rule=reweight.CVaR(self.alpha)))
