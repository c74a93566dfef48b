"""The recorded losses that the next optimizer step is made of, and what each was multiplied by on the way."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from steelyard._support._modules import parameters_of
from steelyard.bilevel.clipping import Clip
from steelyard.bilevel.step import MicroBatch, Step

__all__ = ["Accumulation"]


class Accumulation:
    """Forward passes whose step has not come yet: one, or the micro-batches of an accumulating loop.

    Args:
        optimizer: whose step they will be.

    Attributes:
        clips: what the recorder clipped since the last step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._passes: list[_Pass] = []
        self.clips: list[Clip] = []
        self._fault = ""
        self._in_backward = False
        self._norm: Tensor | None = None
        self._left: list[tuple[int, int] | None] = []

    def __bool__(self) -> bool:
        return bool(self._passes)

    @property
    def steps(self) -> list[Step]:
        """The losses, the oldest first."""
        return [one.step for one in self._passes]

    @property
    def newest(self) -> Step | None:
        """The newest loss that no step has followed."""
        return self._passes[-1].step if self._passes else None

    def add(self, step: Step, loss: Tensor) -> None:
        """Note a loss, multiplied by ``step.scale`` already, and listen for the backward pass that comes to it."""
        arrival = _Arrival(step.scale)
        self._passes.append(_Pass(step, arrival))
        if loss.requires_grad:
            loss.register_hook(_Hook(self, arrival))

    def drop_useless(self) -> None:
        """Drop losses that were only read."""
        self._passes = [one for one in self._passes if one.arrival.of_use]
        self._in_backward = False  # where a backward pass has failed

    def forget(self) -> None:
        """Drop what was noted since the last step."""
        self._passes, self.clips, self._fault, self._norm = [], [], "", None

    def settle_scales(self) -> None:
        """Note what each micro-batch's loss was multiplied by, seen from the gradients as they are now.

        Two things multiply: the loop (what arrived at the loss in the backward pass says by how much), and who divided
        the gradients since, as a `GradScaler` does (the norm says by how much).
        """
        passes = [one for one in self._passes if one.arrival.factors]
        if all(one.arrival.settled or one.arrival.factors == [1.0] for one in passes):
            return
        divided = self._divided()
        found = [sum(map(float, one.arrival.factors)) for one in passes]
        shares = [
            _one_over_whole(factor, one.arrival.rounding)
            if divided == 1.0
            else _one_over(factor * divided, (1, len(passes)), max(_MEASURED, one.arrival.rounding))
            for one, factor in zip(passes, found, strict=True)
        ]
        if shares[0] is None or len(set(shares)) > 1:
            odd = next((f for f, share in zip(found, shares, strict=True) if share != shares[0]), found[0])
            self._fault = _UNKNOWN_SCALE.format(factor=(found[0] if shares[0] is None else odd) * divided)
        for one, share in zip(passes, shares, strict=True):
            one.step.scale, one.arrival.settled = one.arrival.scale * (share or 1.0), True

    def _divided(self) -> float:
        """Return what the gradients were multiplied by since the last backward pass.

        (Looked at where the loss was multiplied by something, too.)
        """
        fused = getattr(self._optimizer, "grad_scale", None)  # under a GradScaler: divided by it in the step itself
        if fused is not None:
            return 1.0 / float(fused)
        if self._norm is None:
            return 1.0
        before, after = float(self._norm), float(_norm_of(parameters_of(self._optimizer)))
        return after / before if before > 0 and math.isfinite(before) else 1.0

    def _backward_begins(self, arrival: _Arrival, gradient: Tensor) -> None:
        """A backward pass has come to a recorded loss."""
        factor = gradient.detach() if gradient.is_cuda else float(gradient)
        if not self._in_backward:
            self._norm = None
            earlier = [one for one in self._passes if one.arrival.factors]
            if earlier and self._cleared():
                arrival.factors.clear()
                self._passes = [one for one in self._passes if not one.arrival.factors]
                self.clips, self._fault = [], ""
            elif self.clips:
                self._fault = _CLIPPED_BETWEEN
            self._in_backward = True
            torch.autograd.Variable._execution_engine.queue_callback(self._backward_ends)
        arrival.factors.append(factor)
        arrival.rounding, arrival.settled = 4 * torch.finfo(gradient.dtype).eps, False

    def _backward_ends(self) -> None:
        if self._in_backward:  # once more, behind what others (DDP) have put in the line meanwhile
            self._in_backward = False
            torch.autograd.Variable._execution_engine.queue_callback(self._backward_ends)
            return
        self._left = _states(parameters_of(self._optimizer))
        newest = [one.arrival.factors[-1] for one in self._passes if one.arrival.factors]
        if any(isinstance(one, Tensor) or one != 1.0 for one in newest):
            self._norm = _norm_of(parameters_of(self._optimizer))

    def gathered(self) -> Step:
        """Return the step with those micro-batches whose gradients the optimizer has; the newest stays pending."""
        self._in_backward = False
        self.settle_scales()
        passes = [one for one in self._passes if one.arrival.factors] or self._passes[-1:]
        *earlier, newest = passes
        step = newest.step
        step.accumulated = tuple(
            [
                MicroBatch(one.batch, one.weight, one.conditions, one.findings, one.scale)
                for one in (before.step for before in earlier)
            ]
        )
        step.clips, step.findings.fault = tuple(self.clips), self._fault
        self._passes = [newest]
        return step

    def _cleared(self) -> bool:
        """Whether the gradients that the last backward pass left were cleared since.

        No gradient is a cleared one. Zeros alone do not say so: a micro-batch of weights 0, or of dead units, leaves
        them too; somebody must have written to them.
        """
        parameters = parameters_of(self._optimizer)
        if all(p.grad is None for p in parameters):
            return True
        if any(p.grad is not None and bool(p.grad.any()) for p in parameters):
            return False
        return _states(parameters) != self._left


class _Arrival:
    """What came back to a recorded loss: by how much it was multiplied on the way to what `backward` was called on.

    Attributes:
        scale: what the recorder itself multiplied it by.
        factors: the gradients that arrived, one a backward pass.
        rounding: of such a factor, relative.
        settled: the step knows of them.
        hook: what notes them, as long as the graph is there.
    """

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.factors: list[Tensor | float] = []
        self.rounding = 0.0
        self.settled = False
        self.hook: weakref.ref[_Hook] | None = None

    @property
    def of_use(self) -> bool:
        """Whether the loss has a part in the next step, or may have yet."""
        return bool(self.factors) or (self.hook is not None and self.hook() is not None)


class _Hook:
    """On a recorded loss; it lives as long as the graph does."""

    def __init__(self, accumulation: Accumulation, arrival: _Arrival) -> None:
        self._accumulation, self._arrival = weakref.ref(accumulation), arrival
        arrival.hook = weakref.ref(self)

    def __call__(self, gradient: Tensor) -> None:
        """Note what arrives."""
        accumulation = self._accumulation()
        # (Of several gradients at once, `is_grads_batched`, no step is made.)
        if accumulation is not None and not _is_batched(gradient):
            accumulation._backward_begins(self._arrival, gradient)


def _is_batched(gradient: Tensor) -> bool:
    functorch = torch._C._functorch
    return functorch.is_batchedtensor(gradient) or functorch.is_legacy_batchedtensor(gradient)


@dataclass
class _Pass:
    """A forward pass whose step has not come yet."""

    step: Step
    arrival: _Arrival


_UNKNOWN_SCALE = (
    "the recorded loss was multiplied by {factor:.6g} on its way to backward(), and nothing says whether that is a "
    "constant: give it to the recorder, recorder.loss(batch, weight, scale={factor:.6g}), or put what computes it "
    "into the objective; division of every micro-batch's loss by one whole number is known to be one"
)
_CLIPPED_BETWEEN = (
    "the gradient was clipped between the micro-batches of a recorded step: clip after the last backward(), or leave "
    "such steps out of the record"
)

_MEASURED = 2e-7
"""How far a factor may be off that was found by the norms of gradients: a `GradScaler` divides in float32."""


def _one_over_whole(factor: float, tolerance: float) -> float | None:
    """Return 1 / m for the whole number m >= 1 that `factor` is one over, up to rounding; else None.

    A function of the loss that is not linear has a slope that is no such number but by accident.
    """
    return _one_over(factor, (round(1 / factor),), tolerance) if 1e-3 <= factor < 2 else None


def _one_over(factor: float, wholes: Iterable[int], tolerance: float) -> float | None:
    """Return 1 / m for the first m of `wholes` that `factor` is one over."""
    return next((1.0 / m for m in wholes if m and abs(factor * m - 1.0) <= tolerance), None)


def _states(parameters: Iterable[Tensor]) -> list[tuple[int, int] | None]:
    """Return which tensor each gradient is, and its version."""
    return [None if p.grad is None else (id(p.grad), p.grad._version) for p in parameters]


def _norm_of(parameters: Iterable[Tensor]) -> Tensor:
    """Return the norm of the gradients of all `parameters`, in float64: a factor is to be seen in all digits."""
    norms = [torch.linalg.vector_norm(p.grad, dtype=torch.float64) for p in parameters if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
