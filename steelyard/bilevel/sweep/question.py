"""What a sweep is asked: the derivatives of which samples' losses, in which step, where, and along what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from steelyard.bilevel._float64_values import Float64Values
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.step import Step, Tensors
from steelyard.bilevel.sweep.beside import losses_beside
from steelyard.bilevel.sweep.composites import PaddingStands
from steelyard.bilevel.trajectory import Trajectory

__all__ = ["Question"]


@dataclass(frozen=True)
class Question:
    """t_i = <direction, grad l_i(at)> of every sample of `batch`, evaluated as in `step`.

    Attributes:
        run, step: the step, whole.
        at: parameters, by name.
        direction: u, by name.
        batch: the samples; that of the step, or others.
        size: at most so many samples at a time; None: all at once, as where they couple.
        beside: they are not of the recorded batch, and BatchNorm takes its statistics of that one (`sweep.beside`).
        over_float64: forward passes in float32 take the values of float64, each rounded once.
    """

    run: Trajectory
    step: Step
    at: Tensors
    direction: Tensors
    batch: Batch
    size: int | None = None
    beside: bool = False
    over_float64: bool = False

    @property
    def recorded(self) -> bool:
        """Whether it is asked of the recorded batch, where it was recorded."""
        return self.batch is self.step.batch and self.at is self.step.parameters

    def pieces(self) -> Iterator[Question]:
        """Yield the question in pieces of at most `size` samples."""
        for batch in self.batch.chunks(self.size):
            yield self if batch is self.batch else replace(self, batch=batch)

    def replay(
        self, function: Callable[..., Any], parameters: Tensors, composites: bool = False, exactly: bool = False
    ) -> Any:
        """Return ``function(module)`` at `parameters` under the step's conditions, with gradients on."""
        with torch.enable_grad():
            return self.run.replay(self.step, parameters, function, exactly=exactly, composites=composites)

    def sample_losses(self, module: nn.Module) -> Tensor:
        """Return the losses ``(batch,)``; for use inside of `replay`."""
        if self.beside:
            return losses_beside(self.run.weighted, module, self.step.batch, self.batch)[len(self.step.batch) :]
        pads = any(getattr(one, "padding_idx", None) is not None for one in module.modules())
        values = Float64Values(self.direction.values()) if self.over_float64 else nullcontext()
        with values, PaddingStands() if pads else nullcontext():
            return self.run.weighted.sample_losses(module, self.batch)

    def losses(self, parameters: Tensors) -> Tensor:
        """Return the losses ``(batch,)`` at `parameters`, with gradients as the caller has them."""
        found: Tensor = self.run.replay(self.step, parameters, self.sample_losses)
        return found

    def reduce(self, module: nn.Module, losses: Tensor) -> Tensor:
        """Return the step's inner loss from its samples' losses; for use inside of `replay`."""
        return self.run.reduce(self.step, module, losses)
