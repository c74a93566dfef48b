"""DONE: adversarial training in which the samples that are hurt most weigh most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from torch import nn

from steelyard import reweight
from steelyard.experiments.methods._base import TrainedMethod
from steelyard.experiments.training.adversarial import PGD, Adversary, robust_accuracy
from steelyard.experiments.training.problem import Fitted, Observer, Problem
from steelyard.experiments.training.ranges import FIXED, Fixed, Range
from steelyard.experiments.training.trainer import Training, train

__all__ = ["DONE"]


@dataclass(frozen=True)
class DONE(TrainedMethod):
    """DONE, doubly robust instance-reweighted adversarial training (Sow et al. 2023).

    ``min_theta max_w sum_i w_i l_i(theta, d_i) - r sum_i w_i log(n w_i) = r log mean_i exp(l_i(theta, d_i) / r)`` over
    weights on the simplex, d_i the perturbation that PGD finds for sample i: `reweight.KLDRO` over adversarial losses.
    So w_i is proportional to ``exp(l_i / r)``. On minibatches the normaliser is a moving average, the compositional
    estimate, for which `memory` > 0. A large r is plain adversarial training (Madry et al. 2018).
    Labels needed: class. Inputs in the attack's [low, high].
    Departure: the paper solves for d_i as a bilevel problem with a log-barrier; here d_i is PGD's and held fixed in the
    gradient by theta, as in Madry et al. Its hyperparameters are not known to us; those here are ours.

    Observed beside the usual figures: robust_validation and robust_test, accuracies under PGD-50 with the attack's
    epsilon and step. Nothing is selected by them.

    Attributes:
        temperature: r > 0, in units of the loss.
        memory: in [0, 1), share of the old normaliser kept from batch to batch; 0 takes each batch's own.
        attack: against each step's batch.

    References:
        D. Sow et al., Doubly robust instance-reweighted adversarial training, 2023 (ICLR 2024).
    """

    name: Literal["done"] = "done"
    temperature: Annotated[float, Range.log10(-1, 1)] = 1.0
    memory: Annotated[float, FIXED] = 0.9
    attack: Annotated[PGD, Fixed("the attack is of the problem")] = field(default_factory=PGD)
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        self._rule()

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Train and return the last model."""
        measured = replace(self.attack, steps=50)

        def told(step: int, model: nn.Module, extra: Mapping[str, float]) -> None:
            parts = {"robust_validation": problem.splits.validation, "robust_test": problem.splits.test}
            robust = {
                name: robust_accuracy(model, part, measured, problem.head, seed=problem.seed)
                for name, part in parts.items()
            }
            observe(step, model, {**extra, **robust})

        adversary = Adversary(self.attack, problem.loss, problem.seed)
        return Fitted(train(problem, self.training, told, rule=self._rule(), perturb=adversary))

    def _rule(self) -> reweight.KLDRO:
        return reweight.KLDRO(self.temperature, self.memory)
