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

__all__ = ["LookAhead", "untouched"]


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


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back what is done inside to parameters, gradients and buffers of `model`, and to the random state."""
    tensors = [*model.parameters(), *model.buffers()]
    before = [tensor.detach().clone() for tensor in tensors]
    gradients = [(p, p.grad) for p in model.parameters()]
    devices = sorted({tensor.get_device() for tensor in tensors if tensor.is_cuda})
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
