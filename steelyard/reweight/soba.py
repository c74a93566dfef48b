"""SOBA and StocBiO: the implicit gradient, its linear system solved on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steelyard._support import _check
from steelyard.bilevel import Batch, WeightedLoss
from steelyard.bilevel.products import check_second_derivatives, inner_gradient
from steelyard.reweight.risk import Risk
from steelyard.reweight.single_loop import ADAM, MEAN, SingleLoop, descend, learning_rate

__all__ = ["SOBA", "StocBiO", "WithSystem"]


class WithSystem(SingleLoop):
    """A single-loop solver that keeps v, about -(d^2 G / d theta^2)^{-1} dF / d theta; see `SOBA` for the arguments."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        objective: WeightedLoss,
        clean: Batch,
        weights: nn.Module,
        *,
        outer_optimizer: Callable[[Iterable[Tensor]], Optimizer] = ADAM,
        system_step: float | None = None,
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
        if system_step is not None:
            system_step = _check.in_range("system_step", system_step, low=0.0, open_low=True)
        self.system_step = system_step
        self.direction = [torch.zeros_like(p) for p in self._parameters]

    def state_dict(self) -> dict[str, Any]:
        """Return what the solver has beside the model and its optimizer: tensors, numbers, lists and dicts only."""
        return {**super().state_dict(), "direction": [one.clone() for one in self.direction]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        super().load_state_dict(state)
        self.direction = [one.clone() for one in state["direction"]]

    def _check_first(self, batch: Batch) -> None:
        super()._check_first(batch)
        weight = self._weigh(batch)
        check_second_derivatives(self.model, self.objective, batch, weight, self._parameters)

    def _step_of_system(self) -> float:
        return learning_rate(self.optimizer) if self.system_step is None else self.system_step

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "system_step": self.system_step}


class SOBA(WithSystem):
    """One minibatch of each level, one step of model, linear system and weights, all from the same point.

    With H = d^2 G / d theta^2, r the learning rate of `optimizer` and v the solution of H v = -dF / d theta so far:

        theta <- theta - r dG / d theta,    v <- v - r (H v + dF / d theta),    x <- x - (d^2 G / dx d theta) v

    where the optimizers may put more to it than the plain steps of the paper. All of G's come from one double backward
    pass: a step costs about six forward passes of the inner minibatch, and the gradient of the outer one.

    Args:
        model, optimizer, objective, clean, weights, outer_optimizer, clean_size, risk, seed: see `SingleLoop`.
        system_step: the step size of v; None: the learning rate of the first group of `optimizer`, at each step. Below
            2 / (largest eigenvalue of H), or v grows without end.

    Attributes:
        direction: v, a tensor for each parameter.

    References:
        Dagréou, Ablin, Vaiter and Moreau, "A framework for bilevel optimization that enables stochastic and global
        variance reduction algorithms", NeurIPS 2022, Algorithm 1 with the directions of section 2.

    Example:
        >>> from functools import partial
        >>> import torch.nn.functional as F
        >>> from steelyard.reweight import SampleWeights
        >>> model = nn.Linear(3, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> objective = WeightedLoss(
        ...     partial(F.cross_entropy, reduction="none"), regulariser=lambda m: 0.01 * m.weight.square().sum()
        ... )
        >>> train, clean = (Batch.of(torch.randn(n, 3), torch.arange(n) % 2) for n in (40, 10))
        >>> solver = SOBA(model, optimizer, objective, clean, SampleWeights(40))
        >>> solver.fit(train, epochs=2, batch_size=10).weights.shape
        torch.Size([40])
    """

    def _advance(self, inner: Batch, outer: Batch) -> tuple[Tensor, Tensor]:
        weight = self._weigh(inner)
        found = self._products(inner, weight, self.direction)
        value, slope = self._risk(outer, self.model, self._parameters)
        through = self._through(weight, found.tangents)
        rate = self._step_of_system()
        for v, curved, one in zip(self.direction, found.curvature, slope, strict=True):
            v.sub_(curved + one, alpha=rate)
        descend(self.optimizer, self._parameters, found.gradient)
        self._move_weights(through)
        return found.loss, value


class StocBiO(WithSystem):
    """Some inner steps, then a Neumann series of the linear system from its start, then a step of the weights.

    A step of this class is one of the inner problem, of the series or of the weights, so that it takes one minibatch
    as those of the others do: `inner_steps` of the first kind, `neumann_steps` of the second (in the first of them
    dF / d theta is taken), one of the third, and again. The series a sum_{q <= Q} (I - a H)^q dF / d theta, each H of
    another minibatch, has a bias of the size of (1 - a mu)^(Q + 1), mu the smallest eigenvalue of H.

    Args:
        model, optimizer, objective, clean, weights, outer_optimizer, system_step, clean_size, risk, seed: see `SOBA`.
        inner_steps: inner steps before each step of the weights.
        neumann_steps: Q.

    References:
        Ji, Yang and Liang, "Bilevel Optimization: Convergence Analysis and Enhanced Design", ICML 2021, Algorithm 2.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        objective: WeightedLoss,
        clean: Batch,
        weights: nn.Module,
        *,
        inner_steps: int = 10,
        neumann_steps: int = 10,
        outer_optimizer: Callable[[Iterable[Tensor]], Optimizer] = ADAM,
        system_step: float | None = None,
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
            system_step=system_step,
            clean_size=clean_size,
            risk=risk,
            seed=seed,
        )
        self.inner_steps = _check.integer("inner_steps", inner_steps, low=1)
        self.neumann_steps = _check.integer("neumann_steps", neumann_steps, low=1)
        self._term = [torch.zeros_like(p) for p in self._parameters]

    @property
    def period(self) -> int:
        """The weights move once in so many steps."""
        return self.inner_steps + self.neumann_steps + 1

    def state_dict(self) -> dict[str, Any]:
        """Return what the solver has beside the model and its optimizer: tensors, numbers, lists and dicts only."""
        return {**super().state_dict(), "term": [one.clone() for one in self._term]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        super().load_state_dict(state)
        self._term = [one.clone() for one in state["term"]]

    def _advance(self, inner: Batch, outer: Batch) -> tuple[Tensor, Tensor]:
        phase = self.steps % self.period - self.inner_steps
        value, slope = self._risk(outer, self.model, self._parameters)
        weight = self._weigh(inner)
        if phase < 0:
            loss, _, gradient = inner_gradient(self.model, self.objective, inner, weight, self._parameters)
            descend(self.optimizer, self._parameters, gradient)
            return loss, value
        if phase == 0:
            self._start_series(slope)
        if phase < self.neumann_steps:
            found = self._products(inner, weight, self._term)
            self._add_term(found.curvature)
        else:
            found = self._products(inner, weight, self.direction)
            self._move_weights(self._through(weight, found.tangents))
        return found.loss, value

    def _start_series(self, slope: tuple[Tensor, ...]) -> None:
        self._term = [one.clone() for one in slope]
        self.direction = [one * -self._step_of_system() for one in slope]

    def _add_term(self, curvature: tuple[Tensor, ...]) -> None:
        rate = self._step_of_system()
        for v, term, curved in zip(self.direction, self._term, curvature, strict=True):
            term.sub_(curved, alpha=rate)
            v.sub_(term, alpha=rate)

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "inner_steps": self.inner_steps, "neumann_steps": self.neumann_steps}
