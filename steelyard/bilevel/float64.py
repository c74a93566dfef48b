"""A recorded step once more, in float64: its gradient, and itself where float32 is too rough for more than that.

The same step means: the same parameters, buffers, batch, weights, modes and random state, each cast. What cannot be
cast (a device without float64), or comes out as another gradient than the one that was recorded (a model that asks for
the precision), is left as it is. What fails, or comes out so, is tried again by `_float64_throughout`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from steelyard._support._nested import mapped
from steelyard.bilevel._float64_convolution import Float64Convolutions
from steelyard.bilevel._float64_throughout import Float64Throughout
from steelyard.bilevel._float64_values import Float64Values
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.clipping import clip_stages
from steelyard.bilevel.integrity import pieces
from steelyard.bilevel.replay import differentiate, leaves_of
from steelyard.bilevel.step import Conditions, MicroBatch, Step, Tensors
from steelyard.bilevel.sweep.graph_record import Recording
from steelyard.bilevel.trajectory import Trajectory

__all__ = [
    "GradientInFloat64",
    "batch_in_float64",
    "eps_of",
    "gradient_in_float64",
    "in_float32",
    "in_float64",
    "kernels_in_float64",
    "step_in_float64",
    "taken_with_its_record",
]

_AGREE = 1e-2, 0.01  # of a parameter's gradient, and a share of that of all: a bias before BatchNorm has noise only
_ROUGHLY = 0.2, 0.2  # more than that is no rounding
_AGREE_OVER_VALUES = 0.04, 0.04  # (the way back is in float32, too: of inputs far from 0 before BatchNorm it is rough)
_AGREE_UNDER_AUTOCAST = 0.2, 2.0  # (in eight bits the noise of such a bias is as large as other gradients)


_ROUGH = 1e-4
"""How far the gradient of the float32 forward pass may be off before that is too rough for derivatives along u as well.

Seen: 4e-7 on an MLP, 5e-6 on a ResNet-18 with GroupNorm (these came out within 5e-7), 3e-3 with BatchNorm (3e-4)."""


class GradientInFloat64(NamedTuple):
    """What float64 says of a step.

    Attributes:
        gradients: by the names asked for, as the optimizer would have used them.
        slope: the gradient of the loss, before any clip.
        step: the step in float64, where that was asked for or the recorded gradient is off by more than `_ROUGH`; else
            None. What the module holds of parameters that are not trained is among its buffers. (Of a step under
            autocast that does not replay in float64: the step in float32.)
    """

    gradients: Tensors
    slope: Tensors
    step: Step | None


def in_float32(step: Step) -> bool:
    """Whether all of the step was taken in float32: autocast takes a part in less, float64 has none above it."""
    return step.conditions.autocast is None and all(p.dtype == torch.float32 for p in step.parameters.values())


def eps_of(step: Step) -> float | None:
    """Return the relative precision of the step's forward pass; None where there is nothing more exact to replay it in.

    That of float32, or under autocast that of what autocast casts to, which replays in float64 as well.
    """
    if any(p.dtype != torch.float32 for p in step.parameters.values()):
        return None
    return torch.finfo(step.conditions.autocast[1] if step.conditions.autocast else torch.float32).eps


def gradient_in_float64(
    run: Trajectory, step: Step, recorded: Tensors, always: bool = False
) -> GradientInFloat64 | None:
    """Return the gradient of the inner loss of `step` by a reverse pass in float64; None where there is none.

    Rounded to float32, whose relative error is harmless, but where weight decay will be added to it, which may
    cancel it. On several ranks all must ask, and all get the same answer.

    Args:
        run, step: the step, for which `eps_of` knows a precision.
        recorded: the gradient that the optimizer used, by the names asked for.
        always: the step in float64 is wanted however near the two gradients are.
    """
    found = _compared(run, step, recorded, always)
    if found is None and in_float32(step) and not step.findings.mixed:
        step.findings.mixed = True
        found = _compared(run, step, recorded, always)
        step.findings.mixed = found is not None
    return found


def _compared(run: Trajectory, step: Step, recorded: Tensors, always: bool) -> GradientInFloat64 | None:
    wide = step_in_float64(run, step)
    found = _recorded(run, step, wide, recorded) if taken_with_its_record(run, step) else None
    found = _replayed(run, step, wide, recorded) if found is None else found
    if run.ranks.any(found is None) and step.conditions.autocast:  # float32 is a good deal better than eight bits
        wide = _without_autocast(step)
        found = _replayed(run, step, wide, recorded)
    if run.ranks.any(found is None):
        return None
    assert found is not None
    slope = run.ranks.mean(found)
    exact = _clipped(step, slope)

    def accepted(agree: tuple[float, float], seen: Tensors | None = None) -> GradientInFloat64 | None:
        gradients = _accepted(exact, recorded, seen or recorded, *agree)
        if gradients is None:
            return None
        rough = always or seen is not None or not _near(exact, recorded)
        return GradientInFloat64(gradients, slope, wide if rough else None)

    if step.conditions.autocast:
        return accepted(_AGREE_UNDER_AUTOCAST)
    same = accepted(_AGREE)
    if same is not None or not in_float32(step) or accepted(_ROUGHLY) is None:
        return same
    # Another gradient, or float32's is rougher than that? In the first case that over float64's values is another, too.
    over = _over_float64_values(run, step, recorded)
    if run.ranks.any(over is None):
        return None
    assert over is not None
    return accepted(_AGREE_OVER_VALUES, _clipped(step, run.ranks.mean(over)))


def _clipped(step: Step, slope: Tensors) -> Tensors:
    """Return the gradient as the optimizer would have used it."""
    return {**slope, **clip_stages(step.clips, slope)[-1]}


def step_in_float64(run: Trajectory, step: Step) -> Step:
    """Return `step` with all that it replays in float64."""
    untrained = {name: p for name, p in run.module.named_parameters() if name not in step.parameters}
    held = {**step.conditions.buffers, **untrained}
    return replace(
        step,
        batch=batch_in_float64(step.batch),
        weight=step.weight.double(),
        parameters=in_float64(step.parameters),
        conditions=_conditions(step.conditions, {n: one.detach() for n, one in held.items()}),
        findings=step.findings.bare(),
        accumulated=tuple([_wide(one, held) for one in step.accumulated]),
    )


def _without_autocast(step: Step) -> Step:
    """Return `step` as it would have been without autocast, in the precision of its parameters."""

    def bare(one: Step | MicroBatch) -> dict[str, Any]:
        return {"conditions": replace(one.conditions, autocast=None), "findings": one.findings.bare()}

    return replace(step, **bare(step), accumulated=tuple([one._replace(**bare(one)) for one in step.accumulated]))


def _conditions(conditions: Conditions, buffers: Tensors) -> Conditions:
    return replace(conditions, buffers=in_float64(buffers), autocast=None)


def _wide(one: MicroBatch, held: Tensors) -> MicroBatch:
    buffers = {name: one.conditions.buffers.get(name, value).detach() for name, value in held.items()}
    conditions = _conditions(one.conditions, buffers)
    return MicroBatch(batch_in_float64(one.batch), one.weight.double(), conditions, one.findings.bare(), one.scale)


def taken_with_its_record(run: Trajectory, step: Step) -> bool:
    """Whether the pass in float64 is kept for the derivatives along u (`near_float64`): float32's may be too rough.

    (It was where samples couple, through BatchNorm, and nowhere else: see `_ROUGH`.)
    """
    hooked = any(p._backward_hooks for p in run.module.parameters())
    alone = run.ranks.size == 1 and not step.accumulated and step.scale == 1.0
    return alone and not hooked and step.findings.coupled and run.is_weighted and in_float32(step)


@contextmanager
def kernels_in_float64(step: Step) -> Iterator[None]:
    """Inside, a replay of the step in float64 takes the faster convolutions, and widens float32 that it meets."""
    convolutions = any(p.ndim == 4 for p in step.parameters.values())
    mixed = step.findings.mixed
    with Float64Convolutions() if convolutions else nullcontext(), Float64Throughout() if mixed else nullcontext():
        yield


def _recorded(run: Trajectory, step: Step, wide: Step, recorded: Tensors) -> Tensors | None:
    """Return what `_replayed` does, and leave the record of the forward pass with `wide`; None where there is none."""
    leaves = {name: p.detach().requires_grad_() for name, p in wide.parameters.items() if name in recorded}

    def body(module: nn.Module) -> Tensors:
        with Recording(leaves) as recording:
            losses = run.weighted.sample_losses(module, wide.batch)
        wide.findings.forward_record = recording.forward_record(losses)
        return differentiate(module, run.reduce(wide, module, losses), leaves)

    try:
        with torch.enable_grad(), kernels_in_float64(step):
            found: Tensors = run.replay(wide, {**wide.parameters, **leaves}, body)
    except (RuntimeError, TypeError, ValueError):  # float32 meets float64 somewhere, or the device has no float64
        return None
    return {name: g if _cancels(step, name) else g.to(step.parameters[name].dtype) for name, g in found.items()}


def _replayed(run: Trajectory, step: Step, wide: Step, recorded: Tensors) -> Tensors | None:
    leaves = leaves_of(run, {n: wide.parameters[n] if _cancels(step, n) else step.parameters[n] for n in recorded})
    with kernels_in_float64(step):
        return _summed(run, wide, leaves)


def _over_float64_values(run: Trajectory, step: Step, recorded: Tensors) -> Tensors | None:
    """Return the gradient of `step` in float32 over the values of float64, which draws what the training drew."""
    leaves = leaves_of(run, {name: step.parameters[name] for name in recorded})
    return _summed(run, step, leaves, over_float64=True)


def _summed(run: Trajectory, step: Step, leaves: Tensors, over_float64: bool = False) -> Tensors | None:
    """Return the gradient by the leaves, micro-batches added up; None where float32 meets float64, or there is none."""

    def body(module: nn.Module, one: Step) -> Tensors:
        with Float64Values(()) if over_float64 else nullcontext():
            value = run.inner_loss(one, module)
        return differentiate(module, value if one.scale == 1.0 else value * one.scale, leaves)

    found: Tensors = {}
    try:
        with torch.enable_grad():
            for one in step.micro_batches:
                at = {**step.parameters, **{n: leaf.to(step.parameters[n].dtype) for n, leaf in leaves.items()}}
                more: Tensors = run.replay(one, at, body, one)
                found = {name: found[name] + g for name, g in more.items()} if found else more
    except (RuntimeError, TypeError, ValueError):  # float32 meets float64 somewhere, or the device has no float64
        return None
    return found


def _cancels(step: Step, name: str) -> bool:
    group: Mapping[str, Any] = step.groups[name]
    return bool(group.get("weight_decay", True)) and not group.get("decoupled_weight_decay", False)


def _accepted(found: Tensors, recorded: Tensors, seen: Tensors, agree: float, share: float) -> Tensors | None:
    """Return `found` where it is `seen` up to rounding, parameter by parameter; None: it is another gradient.

    A gradient that is nothing but rounding (of a bias before BatchNorm) is left as recorded: the losses do not depend
    on that parameter, and the larger the direction along it, the more of the rounding would come back in the answer.
    """
    size, apart = _sizes(found, seen)
    counts = torch.tensor([float(g.numel()) for g in seen.values()])
    typical = torch.linalg.vector_norm(size) / counts.sum().sqrt()
    if not bool((apart <= agree * (size + share * typical * counts.sqrt())).all()):
        return None
    close = dict(zip(seen, (apart <= agree * size).tolist(), strict=True))
    return {name: found[name] if close[name] else g for name, g in recorded.items()}


def _near(found: Tensors, recorded: Tensors) -> bool:
    """Whether the recorded gradient is off by no more than `_ROUGH`."""
    size, apart = _sizes(found, recorded)
    return not bool(torch.linalg.vector_norm(apart) > _ROUGH * torch.linalg.vector_norm(size))


def _sizes(found: Tensors, seen: Tensors) -> tuple[Tensor, Tensor]:
    """Return the norm of each of `seen`, and how far `found` is from it."""
    size = torch.stack([torch.linalg.vector_norm(g) for g in seen.values()]).cpu()
    return size, torch.stack([_distance(found[name], g) for name, g in seen.items()]).cpu()


def _distance(one: Tensor, other: Tensor) -> Tensor:
    apart = [torch.linalg.vector_norm(a - b) for a, b in zip(pieces(one), pieces(other), strict=True)]
    return torch.linalg.vector_norm(torch.stack(apart)).to(other.dtype)


def batch_in_float64(batch: Batch) -> Batch:
    """Return `batch` with its numbers in float64."""
    return replace(batch, inputs=mapped(_cast, batch.inputs), targets=_cast(batch.targets))


def in_float64(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return tensors by name in float64, but for integers."""
    return {name: _cast(tensor) for name, tensor in tensors.items()}


def _cast(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
