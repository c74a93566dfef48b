"""Learning to Reweight: a sample counts as far as a step on it would lower the loss of clean samples."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from steelyard._support import _check
from steelyard._support._modules import parameters_of
from steelyard.bilevel import Batch, Outer, WeightedLoss
from steelyard.reweight.clean import Balanced
from steelyard.reweight.lookahead import Alignment, LookAhead
from steelyard.reweight.online import Online
from steelyard.reweight.risk import MeanRisk, Risk

__all__ = ["LearningToReweight"]

_MEAN = MeanRisk()


class LearningToReweight(Online):
    """Weigh each minibatch by the derivative of the clean loss at example weights 0, clipped at 0 (Algorithm 1).

    With theta'(e) the parameters after one step with the loss sum e_i l_i / b: u_i = -d clean loss(theta'(e)) / d e_i
    at e = 0, and w_i = b max(u_i, 0) / sum_j max(u_j, 0). Where no u_i is positive all weights are 0.

    In the result a sample's probability is the share of its visits in which it helped, u_i > 0, and its weight is 1:
    `suspects` and `sampler` go by that share. The mean of its weights is ruled by the few steps in which few samples
    helped, finds wrong labels less well, and trains a model again no better (results/online);
    ``online.visits.of(index)`` has it.

    Args:
        model, optimizer, objective, clean, clean_size, risk, seed: see `Online`.
        look_ahead: the step that is looked ahead to: "gradient", plain gradient descent as in the paper, where u_i is
            the inner product of the gradients of the clean loss and of l_i (its step size cancels); or "optimizer",
            that of `optimizer`, whose momentum goes on and whose moments scale the parameters.

    References:
        Ren, Zeng, Yang and Urtasun, "Learning to Reweight Examples for Robust Deep Learning", ICML 2018.

    Example:
        >>> from functools import partial
        >>> import torch.nn.functional as F
        >>> model = nn.Linear(3, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> objective = WeightedLoss(partial(F.cross_entropy, reduction="none"))
        >>> train, clean = (Batch.of(torch.randn(n, 3), torch.arange(n) % 2) for n in (40, 10))
        >>> online = LearningToReweight(model, optimizer, objective, clean)
        >>> online.fit(train, epochs=2, batch_size=10).weights.shape
        torch.Size([40])
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        objective: WeightedLoss,
        clean: Batch | Balanced,
        *,
        clean_size: int | None = None,
        risk: Risk = _MEAN,
        seed: int = 0,
        look_ahead: Literal["gradient", "optimizer"] = "gradient",
    ) -> None:
        super().__init__(model, optimizer, objective, clean, clean_size=clean_size, risk=risk, seed=seed)
        self.look_ahead = _check.choice("look_ahead", look_ahead, ("gradient", "optimizer"))
        # At weights 0 a step of plain descent moves nothing but by the regulariser.
        rests = look_ahead == "gradient" and objective.regulariser is None
        self._taken = optimizer if look_ahead == "optimizer" else _plain(optimizer)
        self._look_ahead = (Alignment if rests else LookAhead)(model, self._taken, self.objective)

    def _weigh(self, batch: Batch, outer: Outer) -> Tensor:
        if self._taken is not self.optimizer:  # groups may have been added
            self._taken.param_groups[0]["params"] = parameters_of(self.optimizer)
        if isinstance(self._look_ahead, Alignment):
            found = self._look_ahead(batch, outer)
            self._losses, self._look_ahead.losses = self._look_ahead.losses, None
        else:
            zero = torch.zeros(len(batch), device=batch.device, dtype=next(self.model.parameters()).dtype)
            found = self._look_ahead(batch, zero, outer)
        helps = found.neg_().clamp_(min=0)
        total = helps.sum()
        return helps * (len(batch) / total) if bool(total > 0) else helps

    def _of_visits(self, means: Tensor) -> Tensor:
        return torch.ones_like(means)

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "look_ahead": self.look_ahead}


def _plain(optimizer: Optimizer) -> Optimizer:
    """Return plain gradient descent over the same parameters. (Its step size cancels in the weights.)"""
    return SGD(parameters_of(optimizer), lr=1.0)
