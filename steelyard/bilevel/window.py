"""What the estimators share: the outer gradient, and bringing per-row values to the ids asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from steelyard.bilevel.batch import Batch
from steelyard.bilevel.directional import Direction
from steelyard.bilevel.statistics import differentiable_statistics
from steelyard.bilevel.trajectory import Step, Tensors, Trajectory

__all__ = ["OuterGradient", "add_rows", "outer_gradient", "virtual"]


class OuterGradient(NamedTuple):
    """Derivatives of the outer loss: by theta_T, directly by other tensors, by BatchNorm's running statistics."""

    parameters: Tensors
    direct: tuple[Tensor, ...]
    statistics: Tensors


def outer_gradient(
    run: Trajectory,
    outer: Callable[[nn.Module], Tensor],
    tensors: Sequence[Tensor] = (),
    statistics: bool = False,
) -> OuterGradient:
    """Return the derivatives of `outer` at the final parameters; those by the statistics only where asked for.

    Raises:
        ValueError: `outer` is not a finite scalar, or depends on no optimised parameter.
    """
    leaves = {name: p.detach().requires_grad_() for name, p in run.final().items()}
    nothing: Tensors = {}
    wrapped: AbstractContextManager[Tensors] = (
        differentiable_statistics(run.module) if statistics else nullcontext(nothing)
    )
    with torch.enable_grad(), wrapped as running:
        value = run.evaluate(outer, leaves)
    if not bool(torch.isfinite(value)):
        raise ValueError(
            f"outer is {float(value.detach())} at the final parameters; the inner run has diverged or a batch is empty"
        )
    if not value.requires_grad:
        raise ValueError(
            "outer does not depend on the parameters: compute it from the module it is given, with gradients on"
        )
    wanted = [*leaves.values(), *tensors, *running.values()]
    found = torch.autograd.grad(value, wanted, allow_unused=True, materialize_grads=True)
    middle = len(leaves) + len(tensors)
    return OuterGradient(
        dict(zip(leaves, found[: len(leaves)], strict=True)),
        tuple(found[len(leaves) : middle]),
        {name: one for name, one in zip(running, found[middle:], strict=True) if bool(one.any())},
    )


def add_rows(total: Tensor, ids: Tensor, rows: Tensor, values: Tensor) -> None:
    """Add `values` ``(batch,)`` of the samples `rows` ``(batch,)`` into `total` ``(k,)``, which is aligned with `ids`.

    Rows with the same id add up; rows that `ids` does not name are left out; ids may repeat.
    """
    unique, inverse = torch.unique(ids, return_inverse=True)
    if len(unique) == 0:
        return
    place = torch.searchsorted(unique, rows).clamp_max(len(unique) - 1)
    named = unique[place] == rows
    summed = torch.zeros(len(unique), dtype=total.dtype, device=total.device)
    summed.index_add_(0, place[named], values[named].to(total.dtype))
    total += summed[inverse]


def virtual(run: Trajectory, step: Step, at: Tensors, along: Tensors, samples: Batch, direction: Direction) -> Tensor:
    """Return d<along, grad objective>/dw_i for all `samples` as if each had been a row of the step.

    A row of the step keeps its weight (several rows of a sample add up); the others enter with weight 0.
    """
    tangents = direction.losses(run, step, at, along, samples)
    unique, first = _first_places(samples.index)
    place = torch.searchsorted(unique, step.batch.index).clamp_max(max(0, len(unique) - 1))
    known = bool((unique[place] == step.batch.index).all()) if len(unique) else False
    if known and step.separable:
        recorded = tangents[first[place]]
    else:
        # Dropout masks and batch statistics belong to the whole recorded batch: replay it as it was.
        recorded = direction.losses(run, step, at, along, step.batch)
    values = run.weighted.pull(tangents, recorded, step.weight)
    rows = run.weighted.pull(recorded, recorded, step.weight)
    total, seen = torch.zeros_like(values), torch.zeros_like(values)
    add_rows(total, samples.index, step.batch.index, rows)
    add_rows(seen, samples.index, step.batch.index, torch.ones_like(rows))
    return torch.where(seen > 0, total, values)


def _first_places(index: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sorted distinct ids and, for each, one position where it stands."""
    order = torch.argsort(index, stable=True)
    unique, counts = torch.unique_consecutive(index[order], return_counts=True)
    return unique, order[counts.cumsum(0) - counts]
