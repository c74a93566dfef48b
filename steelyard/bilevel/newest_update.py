"""The outer gradient, pulled back through the newest step; over a forward pass in float64 where float32 is too rough.

A forward pass that float32 is too rough for (the first steps of a ResNet with BatchNorm; `float64._ROUGH`) is as rough
after the step, where the outer loss is taken: v was off by 6e-4 there, and with it the whole answer. So where the step
shows it, v is taken over values of float64 as well (`_float64_values`).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from steelyard.bilevel.float64 import (
    GradientInFloat64,
    gradient_in_float64,
    in_float32,
    kernels_in_float64,
    taken_with_its_record,
)
from steelyard.bilevel.replay import dot
from steelyard.bilevel.step import Step
from steelyard.bilevel.sweep.known import known_of
from steelyard.bilevel.sweep.question import Question
from steelyard.bilevel.trajectory import Trajectory
from steelyard.bilevel.update import Update, pull_update
from steelyard.bilevel.window import OuterGradient, outer_gradient

__all__ = ["is_cold", "newest_update"]


def newest_update(
    run: Trajectory,
    outer: Callable[[nn.Module], Tensor],
    step: Step,
    last: bool,
    statistics: bool = False,
    exactly: bool = False,
) -> tuple[OuterGradient, Update]:
    """Return the outer gradient and the update of the newest step, pulled back with it.

    Args:
        run: the record.
        outer: ``module -> scalar``.
        step: the newest, whole.
        last: no step before it is asked for.
        statistics: the derivatives by running statistics are wanted, too.
        exactly: float32 is known to be too rough for the window.
    """
    exact = None if last and not is_cold(step) else _gradient_ahead(run, step, exactly)
    ahead = exact is not None and exact.step is not None
    found = (_outer_gradient if ahead else outer_gradient)(run, outer, statistics=statistics)
    update = pull_update(run, step, found.parameters, {}, last, exact, exactly)
    if update.in_float64 is None or ahead or not in_float32(step):
        return found, update
    found = _outer_gradient(run, outer, statistics)
    assert update.exact is not None
    assert update.slope is not None
    exact = GradientInFloat64(update.exact, update.slope, update.in_float64)
    return found, pull_update(run, step, found.parameters, {}, last, exact)


def _outer_gradient(run: Trajectory, outer: Callable[[nn.Module], Tensor], statistics: bool) -> OuterGradient:
    """Return the outer gradient over values of float64; in float64 where its way back in float32 was seen to be rough.

    (Of inputs far from 0 before BatchNorm it is: v is off by 1e-2 at 400 times their spread.) That is looked at when it
    is due, for a quarter of what a cold step costs.
    """
    step = run.steps[-1]
    known = known_of(Question(run, step, step.parameters, {}, step.batch), "outer")
    due = known.due()
    found = None if known.rough and not due else outer_gradient(run, outer, statistics=statistics, exactly=True)
    if run.ranks.size > 1 or not (due or known.rough):
        assert found is not None
        return found
    try:
        with kernels_in_float64(step):
            wide = outer_gradient(run, outer, statistics=statistics, throughout=True)
        if found is None:
            return wide
        apart = _apart(found, wide)
        rough = apart > ROUGH * float(dot(wide.parameters, wide.parameters)) ** 0.5
        # Rounding, or another function in float64? Of the first there is as much beside float32's own values.
        known.rough = rough and apart <= 10 * _apart(found, outer_gradient(run, outer, statistics=statistics))
    except Exception:  # noqa: BLE001 (no float64 somewhere; an outer loss that may be asked once only)
        return found or outer_gradient(run, outer, statistics=statistics, exactly=True)
    return wide if known.rough else found


def _apart(one: OuterGradient, other: OuterGradient) -> float:
    apart = {name: g - other.parameters[name] for name, g in one.parameters.items()}
    return float(dot(apart, apart)) ** 0.5


ROUGH = 2e-5
"""How far the outer gradient over values of float64 may be off before it is taken in float64 (a ResNet-18's: 2e-6)."""


def is_cold(step: Step) -> bool:
    """Whether the optimizer had no moments before the step. (What a checkpoint is replayed for has had others.)"""
    states = (step.full_state if step.checkpoint else step.state).values()
    moved = any(isinstance(one, Tensor) and bool(one.any()) for kept in states for one in kept.values())
    return not moved and step.kept != "replayed"


def _gradient_ahead(run: Trajectory, step: Step, always: bool) -> GradientInFloat64 | None:
    """Return the step's gradient in float64, before the outer gradient is taken; None: it is not known to be of use.

    At a cold start of an adaptive optimizer it will be asked for anyway. (Elsewhere a step that turns out to be rough
    has its outer gradient taken again.)
    """
    held = step.findings.held_gradient()
    if held is None or step.clips or run.pullback.linear or not taken_with_its_record(run, step):
        return None
    return gradient_in_float64(run, step, step.trained(held), always)
