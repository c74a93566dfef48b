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
from steelyard.bilevel._float64_values import Float64Values
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.clipping import clip_stages, unclipped
from steelyard.bilevel.integrity import projection
from steelyard.bilevel.replay import (
    backward_into,
    differentiate,
    dot,
    gradient,
    leaves_of,
    quick_dot,
    step_gradient,
)
from steelyard.bilevel.statistics import differentiable_statistics, tracking_layers
from steelyard.bilevel.step import Step, Tensors, micro_batches
from steelyard.bilevel.sweep.checks import blur, tolerance_in, tolerance_of
from steelyard.bilevel.sweep.graph_record import nodes_of
from steelyard.bilevel.sweep.ladder import Ladder, NoDerivative
from steelyard.bilevel.trajectory import Trajectory, scalar

__all__ = [
    "OuterGradient",
    "add_by_id",
    "add_scaled",
    "check_alone",
    "check_detached",
    "check_outer",
    "check_recorded",
    "check_replayed",
    "check_tensors",
    "derivatives_as_rows",
    "ids_of",
    "objection_to",
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

    Raises:
        FloatingPointError: `outer` is NaN or infinite.
        ValueError: `outer` depends on no optimised parameter (and nothing else is asked for).
    """
    final = run.check()
    moved = any(step.findings.moved for step in run.steps) and bool(tracking_layers(run.module))
    leaves = {name: p.detach().requires_grad_() for name, p in (at or final).items()}
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

    with torch.enable_grad(), wrapped as running:
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
    return OuterGradient(run.ranks.mean({name: found[name] for name in leaves}), direct, read if statistics else {})


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


def add_scaled(total: Tensors, more: Tensors, scale: float) -> Tensors:
    """Return ``total + scale * more``, by name; an empty total is zero."""
    if not total:
        return dict(more) if scale == 1.0 else {name: one * scale for name, one in more.items()}
    return {name: total[name].add(one, alpha=scale) for name, one in more.items()}


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


def objection_to(
    run: Trajectory,
    step: Step,
    direction: Tensors,
    slope: Tensors | None = None,
    replayed: bool = False,
    exact: Tensors | None = None,
) -> Callable[[Tensor], str | None]:
    """Return what compares <u, g> with the weighted sum of the t_i = <u, grad l_i> of the step's batch.

    g is the gradient that the optimizer used, where the step still holds it (the newest does); else that of a replay,
    compared with the recorded one by what the step noted of it. What is returned gives None for t_i that agree up to
    rounding.

    Args:
        run, step, direction: the step (or one of its micro-batches), and u.
        slope: the gradient of a replay, where there is one, without the step's scale and clips.
        replayed: the t_i are of the step in another precision than it was taken in.
        exact: the gradient in float64 that the step's loss has before any clip, where that is known.

    Raises (when it is called):
        RuntimeError: the optimizer's gradient is not that of the recorded loss.
    """
    held = step.findings.held_gradient()
    held = None if held is None else _of_the_loss(step, held)
    lost = run.ranks.any(held is None)
    if not lost:
        reference = held
    elif slope is None and step.findings.projected is not None:
        reference = gradient(run, step, step.parameters)
        check_replayed(run, step, add_scaled({}, reference, step.scale))
    else:
        reference = slope

    def along_reference(product: Callable[..., Tensor]) -> float:
        assert reference is not None
        found = product(reference, direction)
        return float(run.ranks.sum(found) / run.ranks.size if lost else found)

    def objection(tangents: Tensor) -> str | None:
        if reference is None:
            return None
        weighted, weight, divisor = run.weighted, step.weight.to(tangents.dtype), step.conditions.divisor
        terms = (weight * tangents / (weighted.divisor(weight) if divisor is None else divisor)).double()
        expected, scale = (run.ranks.sum(torch.stack([terms.sum(), terms.abs().sum()])) / run.ranks.size).tolist()
        if weighted.regulariser is not None:
            share = _along_regulariser(run, step, direction, after=False)
            expected, scale = expected + share, scale + abs(share)
        tolerance = tolerance_of(step, next(iter(reference.values())).dtype)
        used = along_reference(quick_dot)
        if abs(used - expected) <= tolerance * max(scale, abs(used)):
            return None
        used = along_reference(dot)  # the disagreement may be one of rounding
        cast = step.conditions.autocast
        noise = 32 * blur(reference, direction, torch.finfo(cast[1]).eps if cast and replayed else 0.0)
        if abs(used - expected) <= tolerance * max(scale, abs(used)) + noise:
            return None
        if weighted.regulariser is not None:  # it may read what the forward pass has left in the module
            expected += _along_regulariser(run, step, direction, after=True) - share
            if abs(used - expected) <= tolerance * max(scale, abs(used)) + noise:
                return None
        if not lost:
            again = float(dot(run.ranks.mean(gradient(run, step, step.parameters)), direction))
            size = max(abs(used), scale if math.isfinite(scale) else 0.0, _size_along(reference, direction) * 1e-3)
            if not abs(used - again) <= tolerance * size + noise:
                raise RuntimeError(_ANOTHER.format(used=used, expected=again))
        if exact is not None:
            used = float(dot(exact, direction)) / step.scale
            if abs(used - expected) <= tolerance * max(scale, abs(used)) + noise:
                return None
        elif not lost and abs(used - expected) <= _ROUGH * max(scale, abs(used)) + noise and tolerance >= _SINGLE:
            return None  # the gradient is that of the loss; the forward pass rounds more than that of a small net
        return f"along u its weighted sum is {expected:.6g}, the gradient gives {used:.6g}"

    return objection


def _of_the_loss(step: Step, used: Tensors) -> Tensors | None:
    """Return the gradient of the loss, of that which the optimizer used (as far as it matters along u)."""
    found = unclipped(step.clips, used)
    if found is None or step.scale == 1.0:
        return None if found is None else dict(found)
    return {name: one / step.scale for name, one in found.items()}


def _size_along(slope: Tensors, direction: Tensors) -> float:
    return float(dot({n: g.abs() for n, g in slope.items()}, {n: u.abs() for n, u in direction.items()}))


def check_recorded(run: Trajectory, step: Step) -> None:
    """Raise RuntimeError if the gradient that the optimizer used is not that of the recorded loss, by one replay."""
    check_replayed(run, step, step_gradient(run, step))


def check_replayed(run: Trajectory, step: Step, slope: Tensors, exact: Tensors | None = None) -> str | None:
    """Compare the gradient `slope` of a replay (on several ranks, of this one's) with the recorded one.

    The clips of the step are applied to `slope` (the sum over its micro-batches, scaled) first. Compared are the sums
    along a random direction that every step of a window notes of its gradient. Returned is what is wrong with `slope`,
    where an ordinary backward pass gives the recorded gradient. A replay in float64 may give the `exact` gradient
    (before clips) instead, which that of a forward pass in float32 may be far from.

    Raises:
        RuntimeError: no backward pass of the recorded loss does.
    """
    held = step.findings.held_gradient()
    projected = step.findings.projected
    graph = step.findings.graph
    if graph is not None and graph.used:
        if not slope or graph.is_slope(slope):
            return None  # the optimizer was given this very gradient
        projected = projection(graph.slope()) if graph.whole else None
    if projected is None and not run.ranks.any(held is None):
        assert held is not None
        projected = projection({n: g for n, g in held.items() if n not in step.skipped})
    if projected is None:
        return None
    used, size = projected.tolist()
    dtypes = (next(iter(step.parameters.values())).dtype, projected.dtype)
    tolerance = max(tolerance_of(step, dtype) for dtype in dtypes)

    def project(slope: Tensors) -> float:
        trained = {name: slope[name] for name in step.parameters if name not in step.skipped}
        if step.clips:
            return float(projection(clip_stages(step.clips, run.ranks.mean(trained))[-1])[0])
        own = projection(trained)[0]
        return float(run.ranks.sum(own) / run.ranks.size)

    found = project(slope)
    if abs(found - used) <= tolerance * size:
        return None
    ordinary = project(step_gradient(run, step))
    if abs(ordinary - used) <= tolerance * size:
        if exact is not None and abs(found - project(exact)) <= tolerance * size:
            return None
        return f"its gradient is {found:.6g} along a random direction, that of the run {used:.6g}"
    raise RuntimeError(_ANOTHER.format(used=used, expected=ordinary))


_ANOTHER = (
    "the optimizer's gradient is not that of the recorded loss: along one direction it is {used:.3g}, the recorded "
    "batch gives {expected:.3g}. Something changed it between recorder.loss() and step(): clip by "
    "recorder.clip_grad_norm_(...) or recorder.clip_grad_value_(...) instead of torch.nn.utils'; take the loss of "
    "every micro-batch that is accumulated from recorder.loss(); put what is added to the loss into the objective; "
    "leave what a hook does out of the recorded steps"
)


_SINGLE, _ROUGH = tolerance_in(torch.float32), 2e-2


def _along_regulariser(run: Trajectory, step: Step, direction: Tensors, after: bool) -> float:
    """Return <u, gradient of the regulariser>; where it is asked for, `after` a forward pass."""
    regulariser = run.weighted.regulariser
    assert regulariser is not None

    def body(module: nn.Module) -> float:
        if after:
            run.weighted.sample_losses(module, step.batch)
        value = regulariser(module)
        return float(dot(differentiate(module, value, leaves), direction)) if value.requires_grad else 0.0

    leaves = leaves_of(run, step.parameters)
    with torch.enable_grad():
        found: float = run.replay(step, leaves, body)
    return found
