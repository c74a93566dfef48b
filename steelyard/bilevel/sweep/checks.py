"""What an answer has to pass, whichever rung it comes from.

Two checks, both against what an ordinary backward pass gives, neither blind to NaN (a comparison with NaN fails):

- along u: sum w_i t_i / W against <g, u>, g the gradient that the optimizer used (`agreement.objection_to`), at every
  call and every step;
- random signs and sizes r: sum r_i t_i against <grad sum r_i l_i, u> (`signs`), when it is due, by one backward pass.

And for H u, when it is due: <J' a, b> against <a, J b> for random a, b (`curvature`), J b by a central difference of
the gradient, which needs no second derivative of torch's; in float64 where possible.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from steelyard.bilevel._float64_throughout import Float64Throughout
from steelyard.bilevel.float64 import batch_in_float64, in_float32, in_float64, kernels_in_float64, step_in_float64
from steelyard.bilevel.replay import differentiate, dot, leaves_of
from steelyard.bilevel.step import Step, Tensors
from steelyard.bilevel.sweep.question import Question
from steelyard.bilevel.sweep.rungs import CANNOT, Curved
from steelyard.bilevel.sweep.stopped import Held

__all__ = ["blur", "curvature", "left_out", "signs", "tolerance_in", "tolerance_of", "widen"]

_SIGNS = {torch.float64: 1e-7, torch.float32: 3e-3}


def tolerance_of(step: Step, dtype: torch.dtype) -> float:
    """How far sums of the same derivatives may be apart, relative to their size, for rounding."""
    if step.conditions.autocast or dtype not in _SIGNS:
        return 0.2
    if step.rounded:
        return 0.1
    return tolerance_in(dtype)


def tolerance_in(dtype: torch.dtype) -> float:
    """How far they may be apart in a precision."""
    return 1e-6 if dtype == torch.float64 else 3e-3


def widen(question: Question, autocast: bool = False) -> Question | None:
    """Return the question in float64; None where it is so already, or under autocast, unless that is to be left out.

    Args:
        question: as it was asked.
        autocast: a step under autocast is widened too, without it.
    """
    single = in_float32(question.step) or (autocast and question.step.conditions.autocast is not None)
    if not single or any(value.dtype != torch.float32 for value in question.at.values()):
        return None
    step = step_in_float64(question.run, question.step)
    batch = step.batch if question.batch is question.step.batch else batch_in_float64(question.batch)
    at = step.parameters if question.at is question.step.parameters else in_float64(question.at)
    return replace(question, step=step, at=at, direction=in_float64(question.direction), batch=batch)


def blur(slope: Tensors, direction: Tensors, eps: float = 0.0) -> float:
    """Return about how far rounding alone may move <slope, along>, `slope` a gradient.

    An entry of a gradient rounds by a few units of the size of the others (a bias before BatchNorm has nothing else).
    One that is exactly 0 comes from a dead unit, and does not. `eps` is the precision where that is less than the
    gradient's own.
    """
    count = sum(g.numel() for g in slope.values())
    eps = eps or _eps(slope)
    size = float(dot(slope, slope)) ** 0.5 / max(1, count) ** 0.5
    reached = sum(float(torch.linalg.vector_norm((direction[n] * (g != 0)).double()) ** 2) for n, g in slope.items())
    return eps * size * reached**0.5


def signs(question: Question, found: Tensor, generator: torch.Generator) -> str | None:
    """Compare `found` t_i with one backward pass along random signs; return what is wrong."""
    # Not signs alone: a backward pass that is not linear may still be odd.
    sizes = torch.exp2(2 * torch.rand(len(found), generator=generator) - 1)
    signs = (sizes * (torch.randint(0, 2, (len(found),), generator=generator) * 2 - 1)).to(found)
    slope = _signed_gradient(question, signs)
    reference, value = float(dot(slope, question.direction)), float(signs.double() @ found.double())
    scale = max(float(torch.linalg.vector_norm(found.double())), abs(reference))
    dtype = next(iter(question.at.values())).dtype
    tolerance = 0.2 if question.step.conditions.autocast else _SIGNS.get(dtype, 0.2)
    if abs(value - reference) <= tolerance * scale or (
        abs(value - reference) <= tolerance * scale + 32 * blur(slope, question.direction)
    ):
        return None
    return f"with random signs and sizes its sum is {value:.6g}, a backward pass gives {reference:.6g}"


def _signed_gradient(question: Question, signs: Tensor) -> Tensors:
    """Return the gradient of sum r_i l_i by an ordinary backward pass, in pieces where the question is."""
    total = {name: torch.zeros_like(value) for name, value in question.at.items()}
    start = 0
    for piece in question.pieces():
        rows = signs[start : start + len(piece.batch)]
        start += len(piece.batch)
        leaves = leaves_of(question.run, question.at)

        def body(module: nn.Module, piece: Question = piece, rows: Tensor = rows, leaves: Tensors = leaves) -> Tensors:
            losses = piece.sample_losses(module)
            if not losses.requires_grad:
                return {}
            return differentiate(module, losses, leaves, rows.to(losses))

        for name, value in piece.replay(body, leaves).items():
            total[name] += value
    return total


def curvature(
    question: Question,
    answer: Callable[[Question], Curved],
    generator: torch.Generator,
    tries: int = 6,
    held: bool = False,
) -> str | None:
    """Check the way `answer` to H u by <J' a, b> = <a, J b>, a and b random; return what is wrong.

    Where a kink lies between the two points of the difference, another b is taken, and the points nearer to each other,
    as long as rounding leaves something to compare: of a ResNet's millions of units some have a kink within 1e-9. The
    first two points are as near as rounding lets them be; a look from further away follows. A model that float64 cannot
    replay is looked at in float32 (over values of float64, where these can be had), more roughly. With `held` what the
    model detaches stays what it is; where that cannot be had, nothing is wrong.
    """
    wide = widen(replace(question, direction={}), autocast=True)
    if wide is None and next(iter(question.at.values())).dtype != torch.float64:
        return None
    faults: list[str] = []
    for mode in (nullcontext(), Float64Throughout()):  # (the second where a cast to float32 rounds the differences)
        try:
            with mode, kernels_in_float64(question.step):
                fault = _bent(wide or question, answer, generator, _IN_FLOAT64, tries, held, bool(faults))
        except CANNOT:
            continue
        if fault is None:
            return None
        faults.append(fault)
    if faults:
        return faults[0]
    if question.step.conditions.autocast:
        return None
    if wide is None:
        return "it cannot be checked"
    try:
        rough = replace(question, over_float64=question.run.is_weighted)
        return _bent(rough, answer, generator, _IN_FLOAT32, tries, held)
    except CANNOT:
        return None


def left_out(question: Question, generator: torch.Generator) -> str | None:
    """Say by how much the gradient at other parameters changes where what leaves the graph there is held; None: not.

    (A number in a lower precision than the rest stands still at the distances of `curvature`, or jumps.)
    """
    wide = widen(replace(question, direction={}), autocast=True) or question
    for one, every in ((wide, True), (wide, False), (question, False)):
        try:
            with Float64Throughout(every=True) if every else nullcontext(), kernels_in_float64(question.step):
                return _left_out(one, generator, every)
        except CANNOT:
            continue
    return None


def _left_out(question: Question, generator: torch.Generator, every: bool) -> str | None:
    for _ in range(_TRIES):
        hold = Held(wide=every)
        here = _gradient(question, question.at, hold.over(question.at.values(), first=True))
        drawn = _random(question.at, generator)
        moving = {name: 1e-4 * float(p.abs().mean()) * (here[name] != 0) for name, p in question.at.items()}
        at = {name: p + moving[name] * drawn[name] for name, p in question.at.items()}
        free = _gradient(question, at, hold.over(at.values(), everything=False))
        held = _gradient(question, at, hold.over(at.values()))
        if hold.known:
            moved, apart = (_distance(held, other) for other in (here, free))
            if apart <= _NEGLIGIBLE * moved + 10 * _eps(held) * float(dot(held, held)) ** 0.5:
                return None
            return (
                f"held, it changes the gradient elsewhere by {apart / (moved or apart):.2g} of what moving there does"
            )
    return "and what is written there, or in which order, cannot be held to see whether it matters"


_TRIES = 2
"""How often what could not be held is looked at: a loop until something is small may take one round more by chance."""
_NEGLIGIBLE = 2e-5
"""A share of a gradient's change that is left out, and no matter."""


def _eps(gradients: Tensors) -> float:
    return max((torch.finfo(g.dtype).eps for g in gradients.values()), default=0.0)


def _distance(one: Tensors, other: Tensors) -> float:
    return math.sqrt(sum(float((value - other[name]).double().square().sum()) for name, value in one.items()))


class _Precision(NamedTuple):
    """How far <a, J b> may be from <J' a, b>, what rounding does to a gradient (relative both), the largest step."""

    curved: float
    rounding: float
    step: float


_IN_FLOAT64, _IN_FLOAT32 = _Precision(1e-4, 1e-14, 1e-7), _Precision(0.05, 1e-5, 1e-2)


def _bent(
    question: Question,
    answer: Callable[[Question], Curved],
    generator: torch.Generator,
    precision: _Precision,
    tries: int,
    held: bool,
    doubted: bool = False,
) -> str | None:
    """Look from nearest on; once a look failed (or where `doubted`) two must pass at a distance: one may by chance."""
    a = _random(question.at, generator)
    found = answer(replace(question, direction=a))
    hold = Held() if held else None
    if hold is not None:
        _gradient(question, question.at, hold.over(question.at.values(), first=True))
    product, worst = found.product, "it cannot be looked at"
    reached = {name: g != 0 for name, g in found.gradient.items()}
    nearest = _nearest(found, precision)
    del found
    for number, h in enumerate([nearest, *(precision.step * 0.1**k for k in range(tries))]):
        for _ in range(2):
            one, other, scale, size = _look(question, hold, a, product, reached, h, generator)
            if hold is not None and not hold.known:
                return None
            noise = precision.rounding / h * size
            if number and noise > 10 * precision.curved * scale:
                return worst
            if not abs(one - other) <= precision.curved * scale + noise:
                worst = f"along random directions H is {one:.6g}, differences of the gradient give {other:.6g}"
                doubted = True
                break
            if not doubted:
                return None
        else:
            return None
    return worst


def _look(
    question: Question,
    hold: Held | None,
    a: Tensors,
    product: Tensors,
    reached: Tensors,
    h: float,
    generator: torch.Generator,
) -> tuple[float, float, float, float]:
    """Return <H a, b> and <a, H b>, the second by a difference over 2 h, the size of these products, and a gradient's.

    (One point at a time, and written over what is done with: of a large net each is as much as its activations.)
    """
    # Where no gradient comes (the padding row of a table), no weight has moved a parameter, and H is not asked.
    b = {name: value.mul_(reached[name]) for name, value in _random(question.at, generator).items()}
    ahead = {name: p.add(b[name], alpha=h) for name, p in question.at.items()}
    moved = _gradient(question, ahead, hold and hold.over(ahead.values()))
    size = float(dot(moved, moved)) ** 0.5
    behind = {name: p.sub(b[name], alpha=h) for name, p in question.at.items()}
    b = {name: (ahead.pop(name) - p).div_(2 * h) for name, p in behind.items()}  # as rounded beside large entries
    down = _gradient(question, behind, hold and hold.over(behind.values()))
    del behind
    moved = {name: (up - down.pop(name)).div_(2 * h) for name, up in moved.items()}
    scale = max(float(dot(product, product)) ** 0.5, float(dot(moved, moved)) ** 0.5)
    return float(dot(product, b)), float(dot(moved, a)), scale, size


def _gradient(question: Question, at: Tensors, hold: Held | None = None) -> Tensors:
    """Return the gradient of the step's inner loss at other parameters, the forward pass inside of `hold`."""
    leaves = leaves_of(question.run, at)

    def body(module: nn.Module) -> Tensors:
        with hold or nullcontext():
            if question.over_float64:
                value = question.reduce(module, question.sample_losses(module))
            else:
                value = question.run.inner_loss(question.step, module)
        return differentiate(module, value, leaves)

    found: Tensors = question.replay(body, leaves)
    return found


def _nearest(found: Curved, precision: _Precision) -> float:
    """Return the distance at which rounding is a hundredth of what is allowed: few kinks lie within it."""
    product, slope = (float(dot(one, one)) ** 0.5 for one in (found.product, found.gradient))
    near = precision.rounding / (0.01 * precision.curved) * slope / (product or 1.0)
    return min(precision.step, near or precision.step)


def _random(at: Tensors, generator: torch.Generator) -> Tensors:
    return {
        name: torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value) for name, value in at.items()
    }
