"""F2SA: the weights' gradient from two models, one of which pays for the clean loss. No second derivative."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from steelyard._support import _check
from steelyard.bilevel import Batch, WeightedLoss
from steelyard.bilevel.products import inner_gradient
from steelyard.reweight.risk import Risk
from steelyard.reweight.single_loop import ADAM, MEAN, SingleLoop, descend, trained

__all__ = ["F2SA"]


class F2SA(SingleLoop):
    """Move the weights down m (G_x(x, y) - G_x(x, z)): z trains on G, y on F + m G, and the multiplier m grows.

    G_w is the samples' losses: a sample gains weight where the model y, which has seen the clean samples, has the lower
    loss on it. The bias of the direction is of the size of 1 / m; its variance grows with m.

    Each step moves y and z; every `inner_steps`-th moves the weights and m before that. y's step is taken down
    F / m + G, so that one learning rate fits all m.

    `model` is z, which has seen the clean samples through the weights alone. (The benchmark that popularised the method
    reports y.)

    Args:
        model, optimizer, objective, clean, weights, outer_optimizer, clean_size, risk, seed: see `SingleLoop`.
        multiplier: m at first.
        growth: added to m at each step of the weights.
        inner_steps: inner steps for one of the weights.

    Attributes:
        penalised: y, a copy of `model`.

    References:
        Kwon, Kwon, Wright and Nowak, "A Fully First-Order Method for Stochastic Bilevel Optimization", ICML 2023,
        Algorithm 1.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        objective: WeightedLoss,
        clean: Batch,
        weights: nn.Module,
        *,
        multiplier: float = 1.0,
        growth: float = 0.01,
        inner_steps: int = 10,
        outer_optimizer: Callable[[Iterable[Tensor]], Optimizer] = ADAM,
        clean_size: int | None = None,
        risk: Risk = MEAN,
        seed: int = 0,
    ) -> None:
        super().__init__(
            model,
            optimizer,
            objective,
            clean,
            weights,
            outer_optimizer=outer_optimizer,
            clean_size=clean_size,
            risk=risk,
            seed=seed,
        )
        self.multiplier = self._start = _check.in_range("multiplier", multiplier, low=0.0, open_low=True)
        self.growth = _check.in_range("growth", growth, low=0.0)
        self.inner_steps = _check.integer("inner_steps", inner_steps, low=1)
        self.penalised, self._penalised_optimizer = copy.deepcopy((model, optimizer))
        self._penalised_parameters = trained(self._penalised_optimizer)

    @property
    def period(self) -> int:
        """The weights move once in so many steps."""
        return self.inner_steps

    def state_dict(self) -> dict[str, Any]:
        """Return what the solver has beside the model and its optimizer: tensors, numbers, lists and dicts only."""
        return {
            **super().state_dict(),
            "multiplier": self.multiplier,
            "penalised": {name: value.clone() for name, value in self.penalised.state_dict().items()},
            "penalised_optimizer": self._penalised_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        super().load_state_dict(state)
        self.multiplier = state["multiplier"]
        self.penalised.load_state_dict(state["penalised"])
        self._penalised_optimizer.load_state_dict(state["penalised_optimizer"])

    def _advance(self, inner: Batch, outer: Batch) -> tuple[Tensor, Tensor]:
        weight = self._weigh(inner)
        loss, plain, gradient = inner_gradient(self.model, self.objective, inner, weight, self._parameters)
        _, paying, penalised = inner_gradient(self.penalised, self.objective, inner, weight, self._penalised_parameters)
        value, slope = self._risk(outer, self.penalised, self._penalised_parameters)
        if self.steps % self.inner_steps == self.inner_steps - 1:
            tangents = (paying - plain) * (self.multiplier / len(inner))
            self._move_weights(self._through(weight, tangents))
            self.multiplier += self.growth
        for group, own in zip(self._penalised_optimizer.param_groups, self.optimizer.param_groups, strict=True):
            group["lr"] = own["lr"]  # a scheduler of the user's moves the one
        descend(self.optimizer, self._parameters, gradient)
        both = [one + of_clean / self.multiplier for one, of_clean in zip(penalised, slope, strict=True)]
        descend(self._penalised_optimizer, self._penalised_parameters, both)
        return loss, value

    def _settings(self) -> dict[str, Any]:
        own = {"multiplier": self._start, "growth": self.growth, "inner_steps": self.inner_steps}
        return {**super()._settings(), **own}
