"""What the estimators share: the outer gradient, and bringing per-row values to the ids asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard._support._nested import equal
from steelyard.bilevel._float64_throughout import Float64Throughout
from steelyard.bilevel._float64_values import Float64Values
from steelyard.bilevel.agreement import add_scaled, check_replayed, objection_to
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.replay import backward_into, gradient
from steelyard.bilevel.statistics import differentiable_statistics, tracking_layers
from steelyard.bilevel.step import Step, Tensors, micro_batches
from steelyard.bilevel.sweep.graph_record import nodes_of
from steelyard.bilevel.sweep.ladder import Ladder, NoDerivative
from steelyard.bilevel.trajectory import Trajectory, scalar

__all__ = [
    "OuterGradient",
    "add_by_id",
    "check_alone",
    "check_detached",
    "check_outer",
    "check_tensors",
    "derivatives_as_rows",
    "ids_of",
    "outer_gradient",
]

_COMPARED = 8192  # rows that are compared with the data set's at a time
_PIECE = 1 << 20  # ids that are looked up at a time


class OuterGradient(NamedTuple):
    """Derivatives of the outer loss: by theta_T, directly by other tensors, by BatchNorm's running statistics.

    Those by theta_T are the caller's to write over.
    """

    parameters: Tensors
    direct: tuple[Tensor, ...]
    statistics: Tensors


def outer_gradient(
    run: Trajectory,
    outer: Callable[[nn.Module], Tensor],
    tensors: Sequence[Tensor] = (),
    statistics: bool = False,
    at: Tensors | None = None,
    exactly: bool = False,
    throughout: bool = False,
) -> OuterGradient:
    """Return the derivatives of `outer` at the final parameters; those by the statistics only where asked for.

    The final parameters are those of the module, or `at`, where the module has not gone there. On several ranks: of
    the mean over ranks of what `outer` returns on each (as DDP has it for the inner loss).

    Args:
        run: the record.
        outer: ``module -> scalar``.
        tensors: to be differentiated by directly, too.
        statistics: as above.
        at: as above.
        exactly: take the forward pass in float64, each value then rounded to float32 for the backward pass.
        throughout: take both in float64, and round what comes of them.

    Raises:
        FloatingPointError: `outer` is NaN or infinite.
        ValueError: `outer` depends on no optimised parameter (and nothing else is asked for).
    """
    final = run.check()
    moved = any(step.findings.moved for step in run.steps) and bool(tracking_layers(run.module))
    start = {name: p.detach() for name, p in (at or final).items()}
    leaves = {name: (p.double() if throughout else p).detach().requires_grad_() for name, p in start.items()}
    live = {id(p): name for name, p in final.items()}
    nothing: Tensors = {}
    wrapped: AbstractContextManager[Tensors] = (
        differentiable_statistics(run.module) if statistics or moved else nullcontext(nothing)
    )
    direct: tuple[Tensor, ...] = ()
    own = dict(leaves)

    def derived(module: nn.Module) -> Tensor:
        """Walk back where the parameters are swapped in still: a checkpoint evaluates the model once more."""
        nonlocal direct
        with Float64Values() if exactly else nullcontext():
            value = scalar(outer(module))
        nodes = list(nodes_of(value))
        _check_path(live, nodes)
        if any(one.grad is not None for one in own.values()):
            raise ValueError(
                "outer called backward() by itself, and its gradients would be counted twice: return the loss, and "
                "leave the rest to the estimator"
            )
        run.ranks.together(lambda: check_outer(value))
        if tensors:
            direct = torch.autograd.grad(value, tensors, retain_graph=True, allow_unused=True, materialize_grads=True)
        # Into leaves: what `grad` returns may be a tensor of somebody else's.
        backward_into(module, value, own, nodes=nodes)
        return value.detach()

    with torch.enable_grad(), wrapped as running, Float64Throughout() if throughout else nullcontext():
        own.update(running)
        run.evaluate(derived, leaves)
    if not tensors and all(one.grad is None for one in own.values()):
        raise ValueError(_INDEPENDENT)
    found = _apart({name: torch.zeros_like(one) if one.grad is None else one.grad for name, one in own.items()})
    read = {name: found[name] for name in running if bool(found[name].any())}
    if moved and read:
        raise NoDerivative(
            f"outer reads running statistics ({next(iter(read))!r}), which a forward pass in training mode has "
            "moved since a recorded step, by parameters that depend on the weights: call model.eval() before a pass "
            "that only measures, or take no such pass between the recorded steps and the estimator"
        )
    mean = run.ranks.mean({name: found[name].to(p.dtype) for name, p in start.items()})
    return OuterGradient(mean, direct, read if statistics else {})


def _check_path(live: dict[int, str], nodes: Sequence[Any]) -> None:
    """Raise ValueError if a graph reads a `live` parameter, and not the one that the module was given in its place."""
    for node in nodes:
        name = live.get(id(node.variable)) if type(node).__name__ == "AccumulateGrad" else None
        if name is not None:
            raise ValueError(
                f"outer reads parameter {name!r} by another way than the module that it is given (a list of "
                "parameters, another module, a closure), where it has no derivative: read it from that module"
            )


_INDEPENDENT = (
    "outer does not depend on the parameters that the optimizer trains: compute it from the module it is given, with "
    "gradients on"
)


def _apart(gradients: Tensors) -> Tensors:
    """Return the gradients in memory of their own: two parameters that are added share that of their sum."""
    seen: set[int] = set()
    found = {}
    for name, one in gradients.items():
        memory = one.untyped_storage().data_ptr()
        found[name] = one.clone() if memory in seen else one
        seen.add(memory)
    return found


def check_outer(value: Tensor) -> None:
    """Raise FloatingPointError for an outer loss that is not finite, ValueError for one that no parameter moves."""
    if not math.isfinite(float(value.detach())):
        raise FloatingPointError(
            f"outer is {float(value.detach())} at the final parameters; the inner run has diverged or a batch is empty"
        )
    if not value.requires_grad:
        raise ValueError(_INDEPENDENT)


def check_alone(run: Trajectory, what: str) -> None:
    """Raise NotImplementedError if `run` was trained by several ranks, for which `what` has no way to exchange sums."""
    if run.ranks.size > 1:
        raise NotImplementedError(
            f"{what} works in one process, and this run was trained by {run.ranks.size}; use Truncated or "
            "FiniteDifference for sample weights, or record in one process"
        )


def add_by_id(total: Tensor, ids: Tensor, rows: Tensor, values: Tensor, window: bool = False) -> None:
    """Add `values` ``(batch,)`` of the samples `rows` ``(batch,)`` into `total` ``(k,)``, which is aligned with `ids`.

    Rows with the same id add up; rows that `ids` does not name are left out; ids may repeat. Where they are those of
    the `window`, sorted, each once, with all rows among them, there is less to do.
    """
    if rows is ids:
        total += values
    elif window:
        total.index_add_(0, torch.searchsorted(ids, rows.contiguous()), values.to(total.dtype))
    if window or rows is ids:
        return
    unique, inverse = torch.unique(rows, return_inverse=True)  # of the rows, which are few where the ids are many
    if len(unique) == 0:
        return
    summed = torch.zeros(len(unique), dtype=total.dtype, device=total.device)
    summed.index_add_(0, inverse, values.to(total.dtype))
    for part, some in zip(total.split(_PIECE), ids.split(_PIECE), strict=True):
        place = torch.searchsorted(unique, some).clamp_max_(len(unique) - 1)
        part += summed[place].masked_fill_(unique[place] != some, 0)


def derivatives_as_rows(
    run: Trajectory,
    step: Step,
    at: Tensors,
    direction: Tensors,
    samples: Batch,
    ladder: Ladder,
    beside: bool = False,
) -> Tensor:
    """Return d<direction, grad objective>/dw_i for all `samples` as if each had been a row of the step.

    A row of the step keeps its weight (several rows of a sample add up); the others enter with weight 0, where samples
    couple `beside` the recorded ones. Where the step has several micro-batches, such a row is as likely to be in any:
    the mean over them.
    """
    several = at is step.parameters and bool(step.accumulated)
    slopes = [gradient(run, one, at) for one in step.micro_batches] if several else []
    if several:
        _check_total(run, step, slopes)
    total: Tensor | None = None
    micro = step.micro_batches
    for number, one in enumerate(micro):
        values, rows = _virtual(run, one, at, direction, samples, ladder, slopes[number] if several else None, beside)
        if total is None:
            total, seen, outside = (torch.zeros_like(values) for _ in range(3))
        add_by_id(total, samples.index, one.batch.index, rows * one.scale)
        add_by_id(seen, samples.index, one.batch.index, torch.ones_like(rows))
        outside += values * (one.scale / len(micro))
    assert total is not None
    return torch.where(seen > 0, total, outside)


def _virtual(
    run: Trajectory,
    step: Step,
    at: Tensors,
    direction: Tensors,
    samples: Batch,
    ladder: Ladder,
    slope: Tensors | None,
    beside: bool,
) -> tuple[Tensor, Tensor]:
    """Return the derivatives of all `samples` as rows of weight 0 of a micro-batch, and those of its own rows."""
    places = _same_rows(step.batch, samples) if step.findings.separable else None
    objection = objection_to(run, step, direction, slope) if at is step.parameters else lambda rows: None
    # Dropout masks and batch statistics belong to the whole recorded batch: it is replayed as it was.
    if run.ranks.any(places is None):
        tangents = ladder.losses(run, step, at, direction, samples, beside=beside)
        recorded = ladder.losses(run, step, at, direction, step.batch, objection)
    else:
        tangents = ladder.losses(run, step, at, direction, samples, lambda found: objection(found[places]))
        recorded = tangents[places]
    values = run.weighted.pull(tangents, recorded, step.weight)
    return values, run.weighted.pull(recorded, recorded, step.weight)


def _check_total(run: Trajectory, step: Step, slopes: Sequence[Tensors]) -> None:
    """Raise RuntimeError if the gradients of the step's micro-batches do not add up to what the optimizer used."""
    total: Tensors = {}
    for one, slope in zip(step.micro_batches, slopes, strict=True):
        total = add_scaled(total, slope, one.scale)
    check_replayed(run, step, total)


def check_detached(run: Trajectory) -> None:
    """Raise ValueError if recorded weights were computed from something that requires a gradient.

    That path is not part of a replay, and a tensor asked for would silently miss it.
    """
    if any(step.findings.connected for step in micro_batches(run.steps)):
        raise ValueError(
            "the recorded weights carry a graph of their own: compute them inside the objective, or pass the "
            "sample weights' hypergradient on yourself, weight.backward(estimator(trajectory, outer, index))"
        )


def check_tensors(tensors: Sequence[Tensor]) -> None:
    """Raise TypeError or ValueError unless a derivative by each of `tensors` can be asked for.

    Raises:
        TypeError: one that is complex.
        ValueError: one that requires no gradient.
    """
    for number, tensor in enumerate(tensors):
        if tensor.is_complex():
            raise TypeError(
                f"tensors[{number}] is complex ({tensor.dtype}): hold it as a real tensor with a last axis of 2, and "
                "use torch.view_as_complex where the loss reads it"
            )
        if not tensor.requires_grad:
            raise ValueError(
                f"tensors[{number}], {tensor.dtype} {tuple(tensor.shape)}, requires no gradient: call requires_grad_() "
                "on it before the loss that reads it is recorded"
            )


def ids_of(run: Trajectory, index: Tensor | Numbers | None) -> Tensor:
    """Return the ids asked for; those of the window by default.

    Raises:
        TypeError: `index` is not a tensor of ids (a boolean mask, say).
    """
    if index is None:
        return run.index
    index = _check.tensor("index", index)
    if index.dtype == torch.bool or index.is_floating_point() or index.ndim != 1:
        raise TypeError(
            f"index must be a tensor (k,) of global sample ids, int64, got {index.dtype} {tuple(index.shape)}"
        )
    return index.long()


def _same_rows(batch: Batch, samples: Batch) -> Tensor | None:
    """Return where each row of `batch` stands in `samples`; None if one does not, or has other inputs there.

    (Augmented inputs of a recorded batch are not those of the data set.)
    """
    rows = _places(samples.index, batch.index)
    if rows is None:
        return None
    for at, piece in zip(rows.split(_COMPARED), batch.chunks(_COMPARED), strict=True):
        own = samples.take(at)
        if not (equal(own.inputs, piece.inputs) and torch.equal(own.targets, piece.targets)):
            return None
    return rows


def _places(index: Tensor, wanted: Tensor) -> Tensor | None:
    """Return a position of each of the ids `wanted` ``(k,)`` in `index` ``(n,)``; None if one is not there."""
    if not len(index):
        return None
    ordered = bool((index[1:] > index[:-1]).all())  # the usual case, without n more integers
    ids, order = (index, None) if ordered else torch.sort(index, stable=True)
    place = torch.searchsorted(ids, wanted).clamp_max(len(ids) - 1)
    if not bool((ids[place] == wanted).all()):
        return None
    return place if order is None else order[place]
