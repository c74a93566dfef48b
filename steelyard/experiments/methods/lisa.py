"""LISA: training on combinations of samples that differ in the environment alone, or in the class alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch

from steelyard._support import _check
from steelyard.experiments.methods._base import TrainedMethod
from steelyard.experiments.training.batches import shuffled
from steelyard.experiments.training.class_losses import soft_cross_entropy
from steelyard.experiments.training.mixing import MixHalves, Partners, check_mixing
from steelyard.experiments.training.problem import Fitted, Observer, Problem
from steelyard.experiments.training.ranges import SUBPOPBENCH, Range
from steelyard.experiments.training.trainer import Training, train

__all__ = ["LISA"]


@dataclass(frozen=True)
class LISA(TrainedMethod):
    """LISA (Yao et al. 2022, arXiv:2201.00299, Algorithm 1, by mixup).

    With the probability `intra_label` (p_sel there) each sample of a batch is mixed with one of the same class and
    another environment, else with one of the same environment and another class; each pair has a lambda of its own
    from Beta(alpha, alpha). In data with groups (Waterbirds, CelebA, Adult, COMPAS) the environment is the attribute.
    Partners are drawn from all training samples, as in the algorithm; Yang et al. 2023 pair within the batch.
    Departure: no CutMix. A batch takes the inputs of twice as many samples.
    Labels needed: class and environment, in training; group in validation to choose the settings.
    Published: alpha 2, p_sel 0.5 (CMNIST, Waterbirds, CelebA).

    Attributes:
        alpha: >= 0; 0 is ERM.
        intra_label: in [0, 1].

    Raises (in `fit`):
        ValueError: several processes, or inputs that are no floating-point numbers.
        DataError: no pair of a kind that would be drawn.
    """

    name: Literal["lisa"] = "lisa"
    alpha: Annotated[float, Range.log10(-1, 1, SUBPOPBENCH)] = 2.0
    intra_label: Annotated[float, Range.linear(0, 1, SUBPOPBENCH)] = 0.5
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        _check.in_range("alpha", self.alpha, low=0.0)
        _check.in_range("intra_label", self.intra_label, low=0.0, high=1.0)

    @property
    def needs_environments(self) -> bool:
        """Whether it reads the environments of training samples."""
        return True

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Train and return the last model."""
        check_mixing(problem, self.name)
        data = problem.splits.train
        partners = Partners(data, self.intra_label, problem.seed)
        rows = shuffled(torch.arange(len(data)), self.training.batch_size, problem.seed)
        mix = MixHalves(self.alpha, len(problem.splits.classes), problem.seed)
        pairs = partners.paired(rows)
        return Fitted(train(problem, self.training, observe, rows=pairs, perturb=mix, loss=soft_cross_entropy))
