"""The optimizer's next step, taken and taken back: what each sample's weight in it does to an outer loss."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from steelyard.bilevel import Batch, Outer, Recorder, Truncated, WeightedLoss
from steelyard.bilevel.replay import backward_into
from steelyard.bilevel.window import check_outer

__all__ = ["Alignment", "LookAhead", "untouched"]


class LookAhead:
    """d outer / d weight of the samples of the next step: ``look_ahead(batch, weight, outer) -> (batch,)``.

    The step is the user's optimizer's own, from its present state and settings. Afterwards parameters, buffers,
    gradients, the optimizer and the random state are what they were. The optimizer's hooks and schedulers do not see
    the step: a copy of the optimizer takes it, over the same parameters.

    Cost, in forward passes of the batch: 3 for the step, 1 or 2 for the derivative; and the gradient of `outer`.
    Memory: a copy of the parameters and of the optimizer's state beside the record of one step.

    Args:
        model: the module that `optimizer` trains.
        optimizer: any that `Recorder` takes.
        objective: the inner loss of the step.

    Raises:
        TypeError, ValueError: as `Recorder`.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, objective: WeightedLoss) -> None:
        self._model, self._optimizer = model, optimizer
        self._copy = copy.copy(optimizer)
        self._recorder = Recorder(model, self._copy, objective, reuse=True)
        self._estimator = Truncated()

    def __call__(self, batch: Batch, weight: Float[Tensor, " batch"], outer: Outer) -> Float[Tensor, " batch"]:
        """Return d outer / d weight, row by row of `batch` (a sample that stands in two rows has two).

        Args:
            batch: the samples of the step.
            weight: ``(batch,)`` at which the derivative is taken.
            outer: ``module -> scalar``, evaluated after the step, in the mode that the module is in.
        """
        rows = replace(batch, index=torch.arange(len(batch), device=batch.device))
        with untouched(self._model), torch.enable_grad():
            self._copy.param_groups = [dict(group) for group in self._optimizer.param_groups]
            self._copy.state = _cloned(self._optimizer.state)
            self._copy.zero_grad()
            self._recorder.loss(rows, weight).backward()
            self._copy.step()
            return self._estimator(self._recorder.trajectory(), outer)


class Alignment:
    """d outer / d weight of the samples of a plain gradient step, at weights 0: ``-<grad outer, grad l_i> / b``.

    At weights 0 such a step leaves the parameters where they are (without a regulariser), so none is taken: `LookAhead`
    with plain `SGD` of step 1 has the same derivative. What it leaves as it was, too, and the ways to each product are
    the same, checks included.

    Cost, in forward passes of the batch: 1, which may be the ordinary step's own (`losses`), and 2 for the derivative;
    and the gradient of `outer`. No copies of parameters.

    Args:
        model: the module that `optimizer` trains.
        optimizer: of its parameters; it is asked for these alone.
        objective: the inner loss; without a regulariser.

    Attributes:
        losses: ``(batch,)`` of the last call, with their graph, where another forward pass would be the same and leave
            no other trace: the module has no buffers and drew no random numbers. Else None.

    Raises:
        TypeError, ValueError: as `Recorder`.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, objective: WeightedLoss) -> None:
        self._model = model
        self._recorder = Recorder(model, optimizer, objective, reuse=True)
        self._ladder = Truncated().ladder
        self.losses: Tensor | None = None

    def __call__(self, batch: Batch, outer: Outer) -> Float[Tensor, " batch"]:
        """Return d outer / d weight ``(batch,)``.

        Args:
            batch: the samples of the step.
            outer: ``module -> scalar``, evaluated in the mode that the module is in.

        Raises:
            FloatingPointError: `outer` is NaN or infinite.
            ValueError: `outer` depends on none of the optimizer's parameters.
        """
        self.losses = None
        weight = torch.zeros(len(batch), device=batch.device, dtype=next(self._model.parameters()).dtype)
        with untouched(self._model, parameters=False), torch.enable_grad():
            self._recorder.loss(batch, weight)
            run = self._recorder.at_rest()
            (step,) = run.steps
            slope = self._slope(run.final(), outer)
            found = self._ladder.losses(run, step, step.parameters, slope, step.batch).neg()
        if step.findings.separable and not step.conditions.buffers:
            self.losses = step.findings.losses
        return run.weighted.pull(found, found, weight)

    def _slope(self, parameters: dict[str, Tensor], outer: Outer) -> dict[str, Tensor]:
        """Return the gradient of `outer` by the parameters."""
        value = outer(self._model)
        check_outer(value)
        for p in parameters.values():
            p.grad = None
        backward_into(self._model, value, parameters)
        if all(p.grad is None for p in parameters.values()):
            raise ValueError("the clean loss depends on none of the parameters that the optimizer trains")
        return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()}


@contextmanager
def untouched(model: nn.Module, parameters: bool = True) -> Iterator[None]:
    """Put back what is done inside to parameters, gradients and buffers of `model`, and to the random state.

    Args:
        model: the module.
        parameters: whether its parameters are written to inside.
    """
    own, buffers = list(model.parameters()), list(model.buffers())
    tensors = [*own, *buffers] if parameters else buffers
    before = [tensor.detach().clone() for tensor in tensors]
    gradients = [(p, p.grad) for p in own]
    devices = sorted({tensor.get_device() for tensor in [*own, *buffers] if tensor.is_cuda})
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
        for p, gradient in gradients:
            p.grad = gradient


def _cloned(state: Mapping[Tensor, dict[str, Any]]) -> defaultdict[Tensor, dict[str, Any]]:
    """Return an optimizer's state in memory of its own."""
    found: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
    for parameter, entries in state.items():
        found[parameter] = {
            name: value.detach().clone() if isinstance(value, Tensor) else value for name, value in entries.items()
        }
    return found
