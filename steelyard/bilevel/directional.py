"""Derivatives of a recorded step along one direction of parameter space.

Two ways with one face: `ForwardMode` (exact, forward-mode automatic differentiation) and `CentralDifference`
(two plain evaluations, for operators without a forward-mode rule). Both answer

- ``losses``: t_i = <u, grad l_i(theta)> for every sample, without a graph;
- ``gradient``: the gradient of the inner loss;
- ``curvature``: H u and the t_i of the step's batch at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import grad

from steelyard import _check
from steelyard.bilevel._forward_mode import jvp
from steelyard.bilevel._memory import bytes_per_sample
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.integrity import pieces
from steelyard.bilevel.reuse import ghost, tangents
from steelyard.bilevel.rowwise import separate
from steelyard.bilevel.tape import Recording, Unusable
from steelyard.bilevel.trajectory import Step, Tensors, Trajectory

__all__ = ["CentralDifference", "Direction", "ForwardMode", "dot", "gradient", "mixed", "mixes_samples", "quick_dot"]


@runtime_checkable
class Direction(Protocol):
    """A way to differentiate along a direction."""

    exact: bool
    """Whether its values are exact up to rounding, so that others can be checked against them."""

    def losses(self, run: Trajectory, step: Step, at: Tensors, along: Tensors, batch: Batch) -> Tensor:
        """Return t_i = <along, grad l_i(at)> ``(batch,)``."""
        ...

    def curvature(self, run: Trajectory, step: Step, at: Tensors, along: Tensors) -> Tensors:
        """Return the Hessian of the step's inner loss at `at`, times `along`."""
        ...

    def curvature_and_losses(self, run: Trajectory, step: Step, at: Tensors, along: Tensors) -> tuple[Tensors, Tensor]:
        """Return `curvature` and, from the same pass, `losses` of the step's batch."""
        ...


class ForwardMode:
    """Forward-mode: t_i by one tangent pass; H u by forward over reverse, and both at once by reverse over reverse.

    Reverse-over-forward would give H u too and looks as cheap, but in torch 2.13 its result through training-mode
    BatchNorm is wrong (`tests/bilevel/test_torch_facts.py`), so it is not used anywhere here.

    Args:
        memory: bytes that the activations of one chunk of a sweep may take; the chunk size follows from a probe of
            a few samples. A recorded batch that couples its samples or draws random numbers is never cut.
    """

    exact = True

    def __init__(self, memory: int) -> None:
        self.memory = _check.integer("memory", memory, low=1)

    def losses(self, run: Trajectory, step: Step, at: Tensors, along: Tensors, batch: Batch) -> Tensor:
        """One forward pass and its tangents, in chunks where the samples allow it; or by the step's tape.

        Three forward units: a layer whose input and weight both have tangents multiplies three times. By the tape two,
        or one where samples do not couple.
        """
        if batch is step.batch and at is step.parameters:
            found = _reused(run, step, along)
            if found is not None:
                return found
        size = _chunk(run, step, at, batch, self.memory, kept=True)
        pieces: list[Tensor] = []
        for piece in batch.chunks(size):
            with _remedy():
                pieces.append(_tangents(run, step, at, along, piece))
        return torch.cat(pieces)

    def curvature(self, run: Trajectory, step: Step, at: Tensors, along: Tensors) -> Tensors:
        """Forward over reverse."""

        def loss(parameters: Tensors) -> Tensor:
            return run.loss(step, parameters)

        with _remedy():
            product: Tensors = jvp(grad(loss), (at,), (along,))[1]
        return _detached(product)

    def curvature_and_losses(self, run: Trajectory, step: Step, at: Tensors, along: Tensors) -> tuple[Tensors, Tensor]:
        """Reverse over reverse, which takes two thirds of the time of forward over reverse on a small MLP.

        Forward over reverse where an operator cannot be differentiated twice in reverse, and for BatchNorm: in a
        tangent pass the shift by a bias before it goes out with the mean, in reverse it is a sum of large terms that
        rounds (and the time saved on a ResNet-18 was a tenth).
        """
        if step.twice and not step.coupled:
            with suppress(RuntimeError):
                return _twice(run, step, at, along)
            step.twice = False

        def loss(parameters: Tensors) -> tuple[Tensor, Tensor]:
            return _loss_and_losses(run, step, parameters)

        with _remedy():
            product, tangents = jvp(grad(loss, has_aux=True), (at,), (along,))[1]
        return _detached(product), tangents.detach()


def _loss_and_losses(run: Trajectory, step: Step, parameters: Tensors) -> tuple[Tensor, Tensor]:
    """Replay the inner loss of `step`; return the per-sample losses on the way beside it."""
    noted: list[Tensor] = []

    def noting(model: nn.Module, batch: Batch) -> Tensor:
        noted.append(run.weighted.sample_losses(model, batch))
        return noted[-1]

    value = run.loss_with(noting, step, parameters)
    return value, noted[0]


def _twice(run: Trajectory, step: Step, at: Tensors, along: Tensors) -> tuple[Tensors, Tensor]:
    """Return H u and the t_i, both from the derivative of <u, gradient of the loss + sum z_i l_i> at z = 0."""
    leaves = {name: value.detach().requires_grad_() for name, value in at.items()}
    with torch.enable_grad():
        value, losses = _loss_and_losses(run, step, leaves)
        extra = torch.zeros_like(losses, requires_grad=True)
        total = value + (extra * losses).sum()
    first = torch.autograd.grad(total, list(leaves.values()), create_graph=True, allow_unused=True)
    moving = [(g, along[name]) for name, g in zip(leaves, first, strict=True) if g is not None and g.requires_grad]
    if not moving:
        return {name: torch.zeros_like(value) for name, value in at.items()}, torch.zeros_like(extra).detach()
    found = torch.autograd.grad(
        [g for g, _ in moving],
        [*leaves.values(), extra],
        grad_outputs=[u for _, u in moving],
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(leaves, found[:-1], strict=True)), found[-1]


class CentralDifference:
    """(f(theta + h u) - f(theta - h u)) / 2h: two plain passes, through any operator; error O(h^2) + rounding.

    Args:
        memory: as in `ForwardMode`.
        step: the length of the step in parameter space, h times the norm of u; None: the cube root of the precision
            (of autocast, where that is on), which balances truncation against rounding.
    """

    exact = False

    def __init__(self, memory: int, step: float | None = None) -> None:
        self.memory = _check.integer("memory", memory, low=1)
        self.step = None if step is None else _check.in_range("step", step, low=0.0, open_low=True)

    def losses(self, run: Trajectory, step: Step, at: Tensors, along: Tensors, batch: Batch) -> Tensor:
        """Two forward passes without a graph."""
        h = self._size(step, at, along)
        if h is None:
            return torch.zeros(len(batch), device=batch.index.device, dtype=next(iter(at.values())).dtype)
        with torch.no_grad():
            pieces = []
            for piece in batch.chunks(_chunk(run, step, at, batch, self.memory)):
                up = run.sample_losses(step, _moved(at, along, h), piece)
                down = run.sample_losses(step, _moved(at, along, -h), piece)
                pieces.append((up - down) / (2 * h))
        return torch.cat(pieces)

    def curvature(self, run: Trajectory, step: Step, at: Tensors, along: Tensors) -> Tensors:
        """Two gradients."""
        h = self._size(step, at, along)
        if h is None:
            return {name: torch.zeros_like(value) for name, value in at.items()}
        up, down = (gradient(run, step, _moved(at, along, signed)) for signed in (h, -h))
        return {name: (up[name] - down[name]) / (2 * h) for name in at}

    def curvature_and_losses(self, run: Trajectory, step: Step, at: Tensors, along: Tensors) -> tuple[Tensors, Tensor]:
        """One after the other."""
        return self.curvature(run, step, at, along), self.losses(run, step, at, along, step.batch)

    def _size(self, step: Step, at: Tensors, along: Tensors) -> float | None:
        length = math.sqrt(float(dot(along, along)))
        if length == 0.0:
            return None
        precision = step.autocast[1] if step.autocast else next(iter(at.values())).dtype
        # Not relative to the norm of theta: in a wide net that is large, and the step would cross kinks everywhere.
        return (self.step or torch.finfo(precision).eps ** (1 / 3)) / length


def gradient(run: Trajectory, step: Step, at: Tensors) -> Tensors:
    """Return the gradient of the step's inner loss at `at` by one reverse pass; zeros where it does not depend."""
    leaves = {name: value.detach().requires_grad_() for name, value in at.items()}
    with torch.enable_grad():
        value = run.loss(step, leaves)
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def mixed(
    run: Trajectory, step: Step, at: Tensors, along: Tensors, tensors: Sequence[Tensor]
) -> tuple[Tensors, tuple[Tensor, ...]]:
    """Return the derivatives of <along, gradient of the inner loss at `at`> by the parameters and by `tensors`.

    The general path: double backward, through whatever the objective does with `tensors`.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in at.items()}
    with torch.enable_grad():
        value = run.loss(step, leaves)
        first = torch.autograd.grad(
            value, list(leaves.values()), create_graph=True, allow_unused=True, materialize_grads=True
        )
        product = torch.stack([(g * along[name]).sum() for name, g in zip(leaves, first, strict=True)]).sum()
    if not product.requires_grad:
        return {n: torch.zeros_like(p) for n, p in leaves.items()}, tuple(torch.zeros_like(t) for t in tensors)
    found = torch.autograd.grad(product, [*leaves.values(), *tensors], allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found[: len(leaves)], strict=True)), found[len(leaves) :]


def dot(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Tensor:
    """Return the inner product over all parameters, accumulated in float64."""
    pairs = (pair for name in one for pair in zip(pieces(one[name]), pieces(other[name]), strict=True))
    return torch.stack([torch.dot(first.double(), second.double()) for first, second in pairs]).sum()


def quick_dot(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Tensor:
    """Return `dot` accumulated in the parameters' own precision, a quarter of the time; it may overflow or vanish."""
    return torch.stack([torch.dot(one[n].flatten(), other[n].flatten()).double() for n in one]).sum()


def mixes_samples(run: Trajectory, step: Step, at: Tensors, batch: Batch) -> bool:
    """Whether a sample's loss depends on which others are beside it, by a probe of four samples and two of them.

    For layers that normalise by the batch without writing to a buffer, which the recorder cannot see.
    """
    if step.stochastic or len(batch) < 4:
        return False
    four = batch.take(torch.arange(4))
    try:
        with torch.no_grad():
            together, apart = run.sample_losses(step, at, four)[:2], run.sample_losses(step, at, next(four.chunks(2)))
    except Exception:  # noqa: BLE001 (whatever a model says that takes only the number of samples it was trained on)
        return True
    return not torch.allclose(together, apart, rtol=2e-2 if step.autocast else 1e-3, atol=1e-5, equal_nan=True)


def _chunk(run: Trajectory, step: Step, at: Tensors, batch: Batch, memory: int, kept: bool = False) -> int | None:
    """Return how many samples at a time fit into `memory` bytes of activations; None: take the batch whole."""
    whole = batch is step.batch and (not step.separable or mixes_samples(run, step, at, batch))
    if whole or len(batch) <= 4:
        return None

    def probe(samples: int) -> Callable[[], Tensor]:
        few = batch.take(torch.arange(samples))
        return lambda: run.sample_losses(step, at, few)

    return max(1, memory // bytes_per_sample(probe, kept))


@contextmanager
def _remedy() -> Iterator[None]:
    """Say what to do where torch cannot differentiate an operator forward."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        raise RuntimeError(
            f"forward-mode differentiation of the model failed: {error}\nFiniteDifference(...) needs plain passes, "
            "and takes the same arguments"
        ) from error


def _reused(run: Trajectory, step: Step, along: Tensors) -> Tensor | None:
    """Return the t_i of the step's batch by its tape; None where there is none that can answer."""
    if step.tape is None:
        return None
    device = next(iter(step.parameters.values())).device.type  # (ids may be elsewhere)
    with torch.autocast(device, enabled=False):
        if step.separable:
            with suppress(Unusable, RuntimeError):  # torch's forward mode has no rule for an operator
                found = ghost(step.tape, step.parameters, along)
                if separate(step.tape) or _agrees(run, step, along, found):
                    return found
        with suppress(Unusable, RuntimeError):
            return tangents(step.tape, step.parameters, along)
    return None


def _agrees(run: Trajectory, step: Step, along: Tensors, found: Tensor) -> bool:
    """Whether the two largest values are those of the two samples alone: samples may couple, or not come first."""
    rows = found.abs().topk(min(2, len(found))).indices
    try:
        alone = _tangents(run, step, step.parameters, along, step.batch.take(rows))
    except Exception:  # noqa: BLE001 (as in `mixes_samples`)
        return False
    tolerance = (5e-2 if step.autocast else 1e-3) * float(found.abs().max())
    return bool(((alone - found[rows]).abs() <= tolerance).all())


def _tangents(run: Trajectory, step: Step, at: Tensors, along: Tensors, batch: Batch) -> Tensor:
    """Return t_i by a tape of a replay, which is faster than torch's forward mode, or by that."""
    if step.traceable:
        with suppress(Unusable, RuntimeError, TypeError):  # the last where the model asks for a gradient by itself
            return _replayed(run, step, at, along, batch)
        step.traceable = False
    with torch.no_grad():
        return jvp(lambda parameters: run.sample_losses(step, parameters, batch), (at,), (along,))[1]


def _replayed(run: Trajectory, step: Step, at: Tensors, along: Tensors, batch: Batch) -> Tensor:
    """Note the replay, and take the tangents from the notes; autograd marks the path and saves nothing."""
    leaves = {name: value.detach().requires_grad_() for name, value in at.items()}
    with torch.enable_grad(), saved_tensors_hooks(_drop, _drop), Recording(leaves) as recording:
        losses = run.sample_losses(step, leaves, batch)
    tape = recording.tape(losses)
    if tape is None:
        raise Unusable("no tape")
    with torch.autocast(next(iter(at.values())).device.type, enabled=False):
        return tangents(tape, at, along)


def _drop(tensor: Any) -> Any:
    """Save nothing: no backward pass will follow."""


def _detached(tensors: Tensors) -> Tensors:
    """Cut the graph to whatever else the objective reads (a temperature that requires a gradient, say)."""
    return {name: value.detach() for name, value in tensors.items()}


def _moved(at: Tensors, along: Tensors, h: float) -> Tensors:
    with torch.no_grad():
        return {name: value.add(along[name], alpha=h) for name, value in at.items()}
