"""Modular risk minimisation: the subnetwork of a trained network that a sparse mask finds, trained again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steelyard import reweight
from steelyard._support import _check
from steelyard.bilevel.batch import Batch
from steelyard.checkpoint import Stateful
from steelyard.experiments.methods._base import TrainedMethod
from steelyard.experiments.training.masked_model import MaskedModel
from steelyard.experiments.training.problem import Fitted, Observer, Problem, silent
from steelyard.experiments.training.ranges import FIXED, Fixed, Range, Within
from steelyard.experiments.training.trainer import Anneal, OptimizerSettings, Training, train
from steelyard.reweight.rules import Uniform

__all__ = ["MRM"]

_START = 0.9  # of the keep-probabilities: nearly the whole network, and far enough from 1 for the masks to differ
_PENALTIES: Mapping[str, reweight.Risk] = {"irmv1": reweight.IRMv1(), "vrex": reweight.VREx()}


@dataclass(frozen=True)
class MRM(TrainedMethod):
    """MRM (Zhang et al. 2021, ICML, Can Subnetwork Structure be the Key to Out-of-Distribution Generalization?).

    Three trainings, each of the mean loss R or of R plus lambda times a penalty (ModIRM and ModREx there):

    1. the whole network, from its initial parameters;
    2. a mask over its weights, which stay as they are: ``min over s of E_{m ~ Bern(s)} [R(m theta) + lambda
       penalty(m theta)] + sparsity * mean(s)``, one relaxed mask a step (`MaskedModel`);
    3. the subnetwork of the weights with s >= 1/2, from the initial parameters of the first; the others are zero.

    Labels needed: class, and for a penalty environment, in training. Their coefficients are not known to us: the
    defaults here, and those of `coloured_digits/mrm`, are chosen by validation in the training environments of coloured
    digits (its seeds 3 to 5).

    Attributes:
        risk: "mean", or the penalty that is added: "irmv1" or "vrex".
        sparsity: the regulariser's coefficient, in units of the loss; 0 only masks what does harm.
        penalty: lambda over the steps of each of the three trainings; not used with the risk "mean".
        full: the first training. It is not observed.
        search: the second; its optimizer is that of the keep-probabilities, its L2 term acts on nothing. Not observed.
        training: the third.

    Raises (in `fit`):
        ValueError: the mask leaves nothing of a layer.
    """

    name: Literal["mrm"] = "mrm"
    risk: Literal["mean", "irmv1", "vrex"] = "irmv1"
    sparsity: Annotated[float, Range.log10(-4, -1)] = 0.003
    penalty: Anneal = field(default_factory=Anneal)
    full: Annotated[Training, Within({"steps": FIXED}, like="training")] = field(default_factory=Training)
    search: Annotated[Training, Fixed("its optimizer is that of the mask")] = field(
        default_factory=lambda: Training(optimizer=OptimizerSettings("adam", 0.02))
    )
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        _check.in_range("sparsity", self.sparsity, low=0.0)

    @property
    def needs_environments(self) -> bool:
        """Whether it reads the environments of training samples."""
        return self.risk != "mean"

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Train three times and return the subnetwork; `kept` in the observed figures is its share of the weights."""
        whole = self._train(problem, self.full, silent, problem.model())
        mask = self._search(problem, whole)
        kept = float(mask.mean())

        def told(step: int, model: nn.Module, extra: Mapping[str, float]) -> None:
            observe(step, model, {**extra, "kept": kept})

        subnetwork = MaskedModel(problem.model(), _START, problem.seed)
        subnetwork.fix(mask)
        return Fitted(self._train(problem, self.training, told, subnetwork))

    def _search(self, problem: Problem, whole: nn.Module) -> Float[Tensor, " m"]:
        """Return the mask, zeros and ones, that the second training ends with; `whole` keeps its parameters."""
        model = MaskedModel(whole.requires_grad_(False), _START, problem.seed)
        optimizer = self.search.optimizer.build(model.parameters())  # frozen ones, which get no gradient
        optimizer.add_param_group({"params": [model.scores], "weight_decay": 0.0})
        course = model.follow(optimizer, self.search.steps, budget=1.0)  # the box alone: the regulariser is the budget
        rule = _Sparse(model.scores, self.sparsity)
        self._train(problem, self.search, silent, model, rule, optimizer, {"mask": course})
        return (model.scores.detach() >= 0.5).to(model.scores.dtype)

    def _train(
        self,
        problem: Problem,
        settings: Training,
        observe: Observer,
        model: nn.Module,
        rule: _Sparse | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        carry: Mapping[str, Stateful] | None = None,
    ) -> nn.Module:
        penalty = _PENALTIES.get(self.risk)
        anneal = self.penalty if penalty is not None else None
        return train(
            problem,
            settings,
            observe,
            rule=rule,
            penalty=penalty,
            anneal=anneal,
            model=model,
            optimizer=optimizer,
            carry=carry,
        )


class _Sparse(Uniform):
    """The mean loss and `coefficient` times the mean of `scores`."""

    def __init__(self, scores: Tensor, coefficient: float) -> None:
        self.scores, self.coefficient = scores, coefficient

    def mean(self, losses: Float[Tensor, " b"], batch: Batch) -> Float[Tensor, ""]:
        """Return the mean loss with the regulariser added."""
        return super().mean(losses, batch) + self.coefficient * self.scores.mean()
