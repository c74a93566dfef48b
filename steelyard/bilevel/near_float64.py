"""Derivatives along u in float32, over the values that a step's forward pass has in float64.

Where float32's forward pass is too rough for them (the first steps of a ResNet), its values are what is rough: a ReLU
that is on instead of off, statistics of a batch. A tangent pass over the values of a pass in float64, each rounded
once, is off by 5e-7 where one over float32's own is by 3e-4, and takes a quarter of the time of one in float64.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from steelyard.bilevel.replay import dot
from steelyard.bilevel.step import Step
from steelyard.bilevel.sweep.graph_record import ForwardRecord, Unusable
from steelyard.bilevel.sweep.ladder import Ladder, NoDerivative
from steelyard.bilevel.sweep.rungs import ROUNDED
from steelyard.bilevel.trajectory import Trajectory
from steelyard.bilevel.update import Update
from steelyard.bilevel.window import objection_to

__all__ = ["SUMS", "near_float64"]

SUMS = 2e-6
"""How far the weighted sum of the t_i may be from <u, g>, relative to the sum of their sizes: rounding of each by 1e-5
comes to less in the sum of many."""


def near_float64(run: Trajectory, step: Step, update: Update, ladder: Ladder) -> Tensor | None:
    """Return t_i ``(batch,)`` of the step's batch; None where there is no such pass, or float32 is not enough.

    That is found out by the gradient: sum_i w_i t_i / sum_i w_i is <u, g>, and g is known from float64. (Of a parameter
    whose gradient is nothing but rounding, a bias before BatchNorm, both are noise, and differ.)
    """
    wide, exact = update.in_float64, update.exact
    record = None if wide is None else wide.findings.forward_record
    if wide is None or exact is None or not isinstance(record, ForwardRecord) or step.clips or step.skipped:
        return None
    if run.weighted.regulariser is not None or ladder.differences is not None:
        return None
    wide.findings.forward_record = None
    try:
        record.round_to(torch.float32)
    except Unusable:
        return None
    near = replace(step, findings=replace(step.findings, forward_record=record, graph=None))
    known = objection_to(run, step, update.direction)
    expected = float(dot(exact, update.direction))

    def objection(found: Tensor) -> str | None:
        terms = (step.weight * found / run.weighted.divisor(step.weight)).double()
        if not abs(float(terms.sum()) - expected) <= SUMS * float(terms.abs().sum()):
            return f"along u its weighted sum is {float(terms.sum()):.9g}, the gradient in float64 gives {expected:.9g}"
        return known(found)

    try:
        return ladder.losses(run, near, near.parameters, update.direction, near.batch, objection, rungs=[ROUNDED])
    except NoDerivative:
        return None
