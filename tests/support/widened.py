"""A recorded run in another precision: what its float32 answer is measured against, here and in the benchmarks."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from torch import Tensor

from steelyard.bilevel import Trajectory
from steelyard.bilevel.step import MicroBatch


def widened(record: Trajectory) -> Trajectory:
    """The same recorded steps, all of them cast to float64; gradients are computed again."""
    model = copy.deepcopy(record.module).double()
    steps = [
        replace(
            step,
            batch=replace(step.batch, inputs=step.batch.inputs.double()),
            weight=step.weight.double(),
            parameters=_double(step.parameters),
            state=_double(step.state),
            conditions=replace(step.conditions, buffers=_double(step.conditions.buffers)),
            findings=step.findings.bare(),  # (a kept graph and a projection are float32's)
            accumulated=tuple(_wide(one) for one in step.accumulated),
        )
        for step in record.steps
    ]
    live = dict(model.named_parameters())
    after = {name: live[name].detach().clone() for name in record.names}
    return replace(record, module=model, steps=steps, after=after)


def _wide(one: MicroBatch) -> MicroBatch:
    return one._replace(
        batch=replace(one.batch, inputs=one.batch.inputs.double()),
        weight=one.weight.double(),
        conditions=replace(one.conditions, buffers=_double(one.conditions.buffers)),
        findings=one.findings.bare(),
    )


def _double(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _double(one) for key, one in values.items()}
    return values.double() if isinstance(values, Tensor) and values.is_floating_point() else values
