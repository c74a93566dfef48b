"""Derivatives along u in float32, over the values that a step's forward pass has in float64.

Where float32's forward pass is too rough for them (the first steps of a ResNet), its values are what is rough: a ReLU
that is on instead of off, statistics of a batch. A tangent pass over the values of a pass in float64, each rounded
once, is off by 5e-7 where one over float32's own is by 3e-4, and takes a quarter of the time of one in float64. H u by
forward over reverse so is off by 1e-6 (2e-3), in a third of the time.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from steelyard.bilevel.agreement import check_replayed, objection_to
from steelyard.bilevel.float64 import in_float32
from steelyard.bilevel.replay import dot
from steelyard.bilevel.step import Step, Tensors
from steelyard.bilevel.sweep.graph_record import ForwardRecord, Unusable
from steelyard.bilevel.sweep.ladder import Ladder, NoDerivative
from steelyard.bilevel.sweep.question import Question
from steelyard.bilevel.sweep.rungs import ROUNDED, Curved, Rung, forward_over_reverse
from steelyard.bilevel.trajectory import Trajectory
from steelyard.bilevel.update import Update

__all__ = ["SUMS", "curvature_near_float64", "near_float64"]

SUMS = 2e-6
"""How far the weighted sum of the t_i may be from <u, g>, relative to the sum of their sizes: rounding of each by 1e-5
comes to less in the sum of many."""

GRADIENTS = 1e-5
"""How far the gradient that H u came with may be from that of float64, relative to its norm (seen: 1.4e-6)."""


def near_float64(run: Trajectory, step: Step, update: Update, ladder: Ladder) -> Tensor | None:
    """Return t_i ``(batch,)`` of the step's batch; None where there is no such pass, or float32 is not enough.

    That is found out by the gradient: sum_i w_i t_i / sum_i w_i is <u, g>, and g is known from float64. (Of a parameter
    whose gradient is nothing but rounding, a bias before BatchNorm, both are noise, and differ.)
    """
    wide, exact = update.in_float64, _exact(run, step, update, ladder)
    record = None if wide is None else wide.findings.forward_record
    if wide is None or exact is None or not isinstance(record, ForwardRecord):
        return None
    wide.findings.forward_record = None
    try:
        record.round_to(torch.float32)
    except Unusable:
        return None
    near = replace(step, findings=replace(step.findings, forward_record=record, graph=None))
    slope = update.gradients if step.findings.held_gradient() is None else None  # of a replay
    if slope is not None:
        check_replayed(run, step, slope)
    known = objection_to(run, step, update.direction, slope, exact=update.slope)
    expected = float(dot(exact, update.direction))

    def objection(found: Tensor) -> str | None:
        return _unlike(run, step, found, expected) or known(found)

    try:
        return ladder.losses(
            run, near, near.parameters, update.direction, near.batch, objection, rungs=[ROUNDED], over_float64=True
        )
    except NoDerivative:
        return None


def curvature_near_float64(run: Trajectory, step: Step, update: Update, ladder: Ladder) -> Rung | None:
    """Return the way to H u and the t_i over such values, for a question in float64; None where there is none.

    It cannot answer where its gradient or the sum of its t_i is not what float64's gradient says.
    """
    exact = _exact(run, step, update, ladder)
    if exact is None or not in_float32(step) or run.ranks.size > 1:
        return None
    expected = float(dot(exact, update.direction))

    def answer(question: Question) -> Curved:
        found = forward_over_reverse(
            Question(run, step, step.parameters, update.direction, step.batch, over_float64=True)
        )
        apart = {name: found.gradient[name] - g for name, g in exact.items()}
        if not float(dot(apart, apart)) <= GRADIENTS**2 * float(dot(exact, exact)):
            raise Unusable("its gradient is not that of float64")
        if (unlike := _unlike(run, step, found.tangents, expected)) is not None:
            raise Unusable(unlike)
        return found

    return Rung("forward over reverse, over values of float64", answer, passing=True)


def _exact(run: Trajectory, step: Step, update: Update, ladder: Ladder) -> Tensors | None:
    """Return the gradient in float64 that an answer can be compared with; None where there is none."""
    if step.clips or step.skipped or step.accumulated or step.scale != 1.0:
        return None
    if run.weighted.regulariser is not None or ladder.differences is not None:
        return None
    return update.exact


def _unlike(run: Trajectory, step: Step, tangents: Tensor, expected: float) -> str | None:
    """Return what is wrong with the weighted sum of the t_i, which should be `expected`."""
    terms = (step.weight * tangents / run.weighted.divisor(step.weight)).double()
    if abs(float(terms.sum()) - expected) <= SUMS * float(terms.abs().sum()):
        return None
    return f"along u its weighted sum is {float(terms.sum()):.9g}, the gradient in float64 gives {expected:.9g}"
