"""The recorded steps run again with a graph, by the libraries that the field knows: slow, and a check on the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard._support._packages import needed_by
from steelyard.bilevel._torch_stepper import TorchStepper
from steelyard.bilevel.agreement import check_recorded
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.statistics import tracking_layers
from steelyard.bilevel.step import Step, Tensors
from steelyard.bilevel.storage import newest_first
from steelyard.bilevel.sweep.ladder import Ladder
from steelyard.bilevel.trajectory import Trajectory, swapped
from steelyard.bilevel.truncated import MEMORY, Outer
from steelyard.bilevel.window import (
    add_by_id,
    check_alone,
    check_detached,
    check_outer,
    check_tensors,
    ids_of,
    outer_gradient,
)

__all__ = ["Unrolled"]


@runtime_checkable
class Stepper(Protocol):
    """One differentiable optimizer step."""

    def step(self, step: Step, parameters: Tensors, loss: Tensor) -> Tensors:
        """Return the parameters after the step, connected by the graph to those before and to the loss."""
        ...


class Unrolled:
    """d outer / d w by back-propagation through the recorded steps, kept whole in memory.

    Memory: T graphs of a training step. Where the backends are right they agree with `Truncated` (which is cheaper);
    where they are not is shown in `tests/bilevel/test_peers.py`:

    - ``"torch"``: `torch.optim` with ``differentiable=True``; every supported optimizer, but SGD with momentum from a
      cold start (refused: torch detaches the first buffer); refused where a gradient has been zero from the start (the
      square root's derivative at 0 is NaN).
    - ``"torchopt"``: SGD, Adam, AdamW, RMSprop, Adagrad; refused in the same places.
    - ``"higher"``: SGD (without ``maximize``), Adam, Adagrad. Its Adam adds eps before the bias correction, so
      it is another function than `torch.optim.Adam`, far off where the gradients are small (a cold start). Its RMSprop
      has wrong derivatives, of which it warns itself: refused.

    None of them sees the path through running statistics (`bilevel.statistics`): where the outer loss reads those that
    the window moved, that is refused. Nor do they return a derivative for samples outside of the window, or go back
    through a model that computes its activations once more on the way (`torch.utils.checkpoint`). What the model
    detaches is constant to them, as it is to autograd.

    Args:
        steps: T.
        backend: as above.

    Raises (at the call):
        ValueError: the recorder did not keep the whole optimizer state (``Recorder(full_state=True)``), `samples`
            given, more steps than recorded.
        TypeError: the backend does not know the optimizer or one of its options.
        RuntimeError: torch has no second derivative of an operator, or a wrong one; the outer loss reads running
            statistics that the window moved; the model reads its parameters on the way back; a parameter has a hook.
        FloatingPointError: the derivative is NaN.
        ImportError: the backend's library is not installed; the message says how to install it.
    """

    def __init__(self, steps: int = 1, backend: Literal["torch", "torchopt", "higher"] = "torchopt") -> None:
        self.steps = _check.integer("steps", steps, low=1)
        self.backend = _check.choice("backend", backend, ("torch", "torchopt", "higher"))
        self._ladder = Ladder(MEMORY)

    def __call__(
        self,
        trajectory: Trajectory,
        outer: Outer,
        index: Int[Tensor, " k"] | Numbers | None = None,
        samples: Batch | None = None,
    ) -> Float[Tensor, " k"]:
        """Return d outer / d w_i for the samples of the window; the arguments are those of `Truncated`."""
        if samples is not None:
            raise ValueError("Unrolled answers for the samples of the window only; use Truncated(steps=1) with samples")
        steps = self._window(trajectory)
        weights = [step.weight.clone().requires_grad_() for step in steps]
        value = self._unroll(trajectory, outer, steps, weights)
        found = _derivatives(trajectory, value, weights)
        ids = ids_of(trajectory, index)
        total = torch.zeros(len(ids), device=ids.device, dtype=weights[0].dtype)
        for step, rows in zip(steps, found, strict=True):
            add_by_id(total, ids, step.batch.index, rows)
        return total

    def tensors(self, trajectory: Trajectory, outer: Outer, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return d outer / d tensor for any tensors that the losses read; see `Truncated.tensors`."""
        steps = self._window(trajectory)
        check_tensors(tensors)
        check_detached(trajectory)
        value = self._unroll(trajectory, outer, steps, [step.weight for step in steps])
        return _derivatives(trajectory, value, tensors)

    def _unroll(self, run: Trajectory, outer: Outer, steps: list[Step], weights: list[Tensor]) -> Tensor:
        """Run the steps again, with a graph, and evaluate the outer loss at their end."""
        _check_hooks(run)
        for step in steps:
            if step.accumulated or step.clips:
                what = "clipped its gradient" if step.clips else "accumulated micro-batches"
                raise RuntimeError(f"a recorded step {what}, which unrolling does not repeat: use Truncated")
            check_recorded(run, step)
            if step.skipped and self.backend != "torch":
                raise RuntimeError(
                    f"parameter {min(step.skipped)!r} had no gradient in a recorded step; {self.backend} does not "
                    "follow that: use Truncated, or backend='torch'"
                )
        if len(steps) > 1:
            self._ladder.check_second_derivative(run, steps[-1])
        stepper = _stepper(self.backend, run, steps[0])
        if len(steps) > 1 and any(step.findings.coupled for step in steps) and tracking_layers(run.module):
            read = outer_gradient(run, outer, statistics=True).statistics
            if read:
                raise RuntimeError(
                    f"outer reads running statistics ({next(iter(read))!r}) that the steps have moved, and unrolling "
                    "knows no derivative of those; use Truncated, or evaluate outer in training mode"
                )
        with torch.enable_grad():
            parameters = {name: p.clone().requires_grad_() for name, p in steps[0].parameters.items()}
            with _remedy():
                for step, weight in zip(steps, weights, strict=True):
                    parameters = run.replay(
                        step, parameters, _take, run, stepper, step, parameters, weight, composites=True
                    )
            value = run.evaluate(outer, parameters)
        check_outer(value)
        return value

    def _window(self, run: Trajectory) -> list[Step]:
        check_alone(run, "Unrolled")
        if run.differences is not None:
            raise TypeError(f"no backend of Unrolled knows the optimizer {run.optimizer.__name__}; use Truncated")
        if self.steps > len(run.steps):
            raise ValueError(
                f"steps={self.steps}, but {len(run.steps)} were recorded; record more with Recorder(steps=...)"
            )
        run.check()
        steps = list(newest_first(run, self.steps))[::-1]
        if set(steps[0].full_state) != set(steps[0].parameters):
            raise ValueError(
                "Unrolled starts from the whole optimizer state: record with Recorder(..., full_state=True)"
            )
        return steps


def _check_hooks(run: Trajectory) -> None:
    """Raise RuntimeError where a hook on a parameter changes the gradients: unrolled parameters have none."""
    hooked = [name for name, p in run.final().items() if p._backward_hooks]
    if hooked:
        raise RuntimeError(
            f"parameter {hooked[0]!r} has a gradient hook, which unrolling would leave out; use Truncated"
        )


def _take(
    module: nn.Module, run: Trajectory, stepper: Stepper, step: Step, parameters: Tensors, weight: Tensor
) -> Tensors:
    """Take one step where the parameters are swapped in still: its backward pass may read the module once more."""
    return stepper.step(step, parameters, run.inner_loss(step, module, weight) * step.scale)


@contextmanager
def _remedy() -> Iterator[None]:
    """Say what to do where torch cannot differentiate a step twice."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        raise RuntimeError(f"the unrolled steps cannot be differentiated: {error}; use Truncated") from error


def _derivatives(run: Trajectory, value: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Go back through all the steps at once, over live parameters that are nothing but NaN.

    Nothing there may read them: a model that computes activations once more on the way back (`torch.utils.checkpoint`)
    would do so at the parameters of another step.
    """
    live = list(run.module.parameters())
    values = [p.data for p in live]
    buffers = {name: value.detach().clone() for name, value in run.module.named_buffers()}
    with swapped(run.module, buffers):
        return _gone_back(live, values, value, tensors)


def _gone_back(
    live: list[nn.Parameter], values: list[Tensor], value: Tensor, tensors: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    try:
        for p in live:
            p.data = torch.full_like(p, math.nan)
        with _remedy():
            found = torch.autograd.grad(
                value, list(tensors), allow_unused=True, materialize_grads=True, retain_graph=True
            )
    finally:
        for p, own in zip(live, values, strict=True):
            p.data = own
    if all(bool(torch.isfinite(one).all()) for one in found):
        return found
    again = torch.autograd.grad(value, list(tensors), allow_unused=True, materialize_grads=True)
    if all(torch.equal(one.isnan(), other.isnan()) for one, other in zip(found, again, strict=True)):
        raise FloatingPointError(
            "the unrolled derivative is NaN or infinite: an optimizer's square root at a gradient that has been zero, "
            "or a norm in the model at a row of zeros; use Truncated"
        )
    raise RuntimeError(
        "the model reads its parameters once more on the way back (torch.utils.checkpoint, a hook), and Unrolled goes "
        "back through several steps at once, which had others: use Truncated"
    )


def _stepper(backend: str, run: Trajectory, first: Step) -> Stepper:
    if backend == "torchopt":
        with needed_by("Unrolled(backend='torchopt')", install="torchopt"):
            from steelyard.bilevel._torchopt import TorchOptStepper

        return TorchOptStepper(run.optimizer, first)
    if backend == "higher":
        with needed_by("Unrolled(backend='higher')", install="higher"):
            from steelyard.bilevel._higher import HigherStepper

        return HigherStepper(run.optimizer, first)
    return TorchStepper(run.optimizer, first)
