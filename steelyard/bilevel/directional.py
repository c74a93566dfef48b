"""Derivatives of a recorded step along one direction of parameter space.

Two ways with one face: `ForwardMode` (exact, forward-mode automatic differentiation) and `CentralDifference`
(two plain evaluations, for operators without a forward-mode rule). Both answer

- ``losses``: t_i = <u, grad l_i(theta)> for every sample, without a graph;
- ``gradient``: the gradient of the inner loss;
- ``curvature``: H u and the t_i of the step's batch at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.func import grad, jvp

from steelyard import _check
from steelyard.bilevel._memory import bytes_per_sample
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.trajectory import Step, Tensors, Trajectory

__all__ = ["CentralDifference", "Direction", "ForwardMode", "dot", "gradient", "mixed"]


@runtime_checkable
class Direction(Protocol):
    """A way to differentiate along a direction."""

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
    """Forward-mode: t_i by one dual forward pass, H u by forward-over-reverse.

    Reverse-over-forward would give H u too and looks as cheap, but in torch 2.13 its result through training-mode
    BatchNorm is wrong (`tests/bilevel/test_torch_facts.py`), so it is not used anywhere here.

    Args:
        memory: bytes that the activations of one chunk of a sweep may take; the chunk size follows from a probe of
            two samples. Batches that couple their samples or draw random numbers are never cut.
    """

    def __init__(self, memory: int) -> None:
        self.memory = _check.integer("memory", memory, low=1)

    def losses(self, run: Trajectory, step: Step, at: Tensors, along: Tensors, batch: Batch) -> Tensor:
        """One dual forward pass, in chunks where the samples allow it: two forward units, no graph."""
        pieces = []
        for piece in batch.chunks(self._chunk(run, step, at, batch)):
            pieces.append(_tangents(run, step, at, along, piece))
        return torch.cat(pieces)

    def curvature(self, run: Trajectory, step: Step, at: Tensors, along: Tensors) -> Tensors:
        """Forward over reverse."""

        def loss(parameters: Tensors) -> Tensor:
            return run.loss(step, parameters)

        product: Tensors = jvp(grad(loss), (at,), (along,))[1]
        return _detached(product)

    def curvature_and_losses(self, run: Trajectory, step: Step, at: Tensors, along: Tensors) -> tuple[Tensors, Tensor]:
        """Forward over reverse, the per-sample losses carried along as an auxiliary output."""
        weighted = run.weighted

        def loss(parameters: Tensors) -> tuple[Tensor, Tensor]:
            noted: list[Tensor] = []

            def noting(outputs: Tensor, targets: Tensor) -> Tensor:
                noted.append(weighted.loss(outputs, targets))
                return noted[-1]

            value = run.loss_with(noting, step, parameters)
            return value, noted[0]

        product, tangents = jvp(grad(loss, has_aux=True), (at,), (along,))[1]
        return _detached(product), tangents.detach()

    def _chunk(self, run: Trajectory, step: Step, at: Tensors, batch: Batch) -> int | None:
        if not step.separable or len(batch) <= 2:
            return None
        two = next(batch.chunks(2))
        # A dual pass holds a tangent beside every activation.
        probe = 2 * bytes_per_sample(lambda: run.sample_losses(step, at, two), len(two))
        return max(1, self.memory // max(1, probe))


class CentralDifference:
    """(f(theta + h u) - f(theta - h u)) / 2h: two plain passes, through any operator; error O(h^2) + rounding.

    Args:
        memory: as in `ForwardMode`.
        step: h times the norm of u, relative to max(1, norm of theta); None: the cube root of the precision
            of the parameters, which balances truncation against rounding.
    """

    def __init__(self, memory: int, step: float | None = None) -> None:
        self.memory = _check.integer("memory", memory, low=1)
        self.step = None if step is None else _check.in_range("step", step, low=0.0, open_low=True)

    def losses(self, run: Trajectory, step: Step, at: Tensors, along: Tensors, batch: Batch) -> Tensor:
        """Two forward passes without a graph."""
        h = self._size(at, along)
        if h is None:
            return torch.zeros(len(batch), device=batch.index.device, dtype=next(iter(at.values())).dtype)
        with torch.no_grad():
            chunk = None
            if step.separable and len(batch) > 2:
                two = next(batch.chunks(2))
                chunk = max(1, self.memory // max(1, bytes_per_sample(lambda: run.sample_losses(step, at, two), 2)))
            pieces = []
            for piece in batch.chunks(chunk):
                up = run.sample_losses(step, _moved(at, along, h), piece)
                down = run.sample_losses(step, _moved(at, along, -h), piece)
                pieces.append((up - down) / (2 * h))
        return torch.cat(pieces)

    def curvature(self, run: Trajectory, step: Step, at: Tensors, along: Tensors) -> Tensors:
        """Two gradients."""
        h = self._size(at, along)
        if h is None:
            return {name: torch.zeros_like(value) for name, value in at.items()}
        up, down = (gradient(run, step, _moved(at, along, signed)) for signed in (h, -h))
        return {name: (up[name] - down[name]) / (2 * h) for name in at}

    def curvature_and_losses(self, run: Trajectory, step: Step, at: Tensors, along: Tensors) -> tuple[Tensors, Tensor]:
        """One after the other."""
        return self.curvature(run, step, at, along), self.losses(run, step, at, along, step.batch)

    def _size(self, at: Tensors, along: Tensors) -> float | None:
        length = math.sqrt(float(dot(along, along)))
        if length == 0.0:
            return None
        relative = self.step or torch.finfo(next(iter(at.values())).dtype).eps ** (1 / 3)
        return relative * max(1.0, math.sqrt(float(dot(at, at)))) / length


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
    return torch.stack([(one[name].double() * other[name].double()).sum() for name in one]).sum()


def _tangents(run: Trajectory, step: Step, at: Tensors, along: Tensors, batch: Batch) -> Tensor:
    with torch.no_grad():
        return jvp(lambda parameters: run.sample_losses(step, parameters, batch), (at,), (along,))[1]


def _detached(tensors: Tensors) -> Tensors:
    """Cut the graph to whatever else the objective reads (a temperature that requires a gradient, say)."""
    return {name: value.detach() for name, value in tensors.items()}


def _moved(at: Tensors, along: Tensors, h: float) -> Tensors:
    with torch.no_grad():
        return {name: value.add(along[name], alpha=h) for name, value in at.items()}
