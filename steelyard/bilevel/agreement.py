"""Does a replay agree with what the run recorded? Sums of its derivatives, and the gradient itself."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from steelyard.bilevel.clipping import clip_stages, unclipped
from steelyard.bilevel.integrity import projection
from steelyard.bilevel.replay import differentiate, dot, gradient, leaves_of, quick_dot, step_gradient
from steelyard.bilevel.step import Step, Tensors
from steelyard.bilevel.sweep.checks import blur, tolerance_in, tolerance_of
from steelyard.bilevel.trajectory import Trajectory

__all__ = ["add_scaled", "check_recorded", "check_replayed", "objection_to"]


def add_scaled(total: Tensors, more: Tensors, scale: float) -> Tensors:
    """Return ``total + scale * more``, by name; an empty total is zero."""
    if not total:
        return dict(more) if scale == 1.0 else {name: one * scale for name, one in more.items()}
    return {name: total[name].add(one, alpha=scale) for name, one in more.items()}


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
        projected = projection(step.trained(graph.slope())) if graph.whole else None
    if projected is None and not run.ranks.any(held is None):
        assert held is not None
        projected = projection(step.trained(held))
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
