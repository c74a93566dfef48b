"""KL-DRO: weights that grow exponentially with the loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from steelyard import reweight
from steelyard.experiments.methods._base import TrainedMethod
from steelyard.experiments.training.problem import Fitted, Observer, Problem
from steelyard.experiments.training.ranges import FIXED, Range
from steelyard.experiments.training.trainer import Training, train

__all__ = ["KLDRO"]


@dataclass(frozen=True)
class KLDRO(TrainedMethod):
    """KL-regularised DRO: ``min_theta max_w sum_i w_i l_i - t sum_i w_i log(n w_i) = t log mean exp(l / t)``.

    So w_i is proportional to ``exp(l_i / t)`` (`reweight.KLDRO`; Hu and Hong 2013; Qi et al. 2021, arXiv:2006.10138,
    for the moving average; Li et al. 2021, arXiv:2007.01162, as tilted risk with tilt 1 / t). `DONE` has these
    weights over adversarial losses.
    Labels needed: class. t is a hyperparameter of each problem; no published value holds for the data sets here.

    Attributes:
        temperature: t, in units of the loss.
        memory: share of the old normaliser kept from batch to batch; 0 takes each batch's own.
    """

    regression: ClassVar[bool] = True
    name: Literal["kl_dro"] = "kl_dro"
    temperature: Annotated[float, Range.log10(-1, 1)] = 1.0
    memory: Annotated[float, FIXED] = 0.0
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        self._rule()

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Train and return the last model."""
        return Fitted(train(problem, self.training, observe, rule=self._rule()))

    def _rule(self) -> reweight.KLDRO:
        return reweight.KLDRO(self.temperature, self.memory)
