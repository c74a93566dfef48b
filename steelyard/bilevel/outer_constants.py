"""What an outer loss takes out of the graph is constant to its gradient: does it stand still where it is evaluated?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from steelyard.bilevel._float64_throughout import Float64Throughout
from steelyard.bilevel.replay import dot
from steelyard.bilevel.step import Tensors
from steelyard.bilevel.sweep.known import Known
from steelyard.bilevel.sweep.ladder import StopGradientWarning
from steelyard.bilevel.sweep.stopped import Held
from steelyard.bilevel.trajectory import Trajectory

__all__ = ["look_at_constants", "say_constants"]


def look_at_constants(
    run: Trajectory, outer: Callable[[nn.Module], Tensor], at: Tensors, slope: Tensors, known: Known
) -> None:
    """Note in `known` how much of what `outer` changes by, from `at` up its `slope`, what left its graph is of it.

    In float64 where that can be had. An outer loss that is not the same twice (it draws, it takes the next of an
    iterator) cannot be looked at.
    """
    for throughout in (True, False):
        try:
            known.left_out = _left_out(run, outer, at, slope, known.generator, throughout)
        except Exception:  # noqa: BLE001 (whatever an outer loss raises that is asked once more, or in float64)
            continue
        return


def say_constants(known: Known) -> None:
    """Warn of what was noted."""
    if known.left_out is not None:
        warnings.warn(
            "the outer loss, or the model in it, takes values out of the graph (detach, no_grad, .data, .item()), and "
            "its gradient leaves out what flows through there: the answer is that of autograd, not of training again "
            f"({known.left_out}); return an outer loss that is differentiable throughout, or take the surrogate for "
            "what it is",
            StopGradientWarning,
            stacklevel=4,
        )


def _left_out(
    run: Trajectory,
    outer: Callable[[nn.Module], Tensor],
    at: Tensors,
    slope: Tensors,
    generator: torch.Generator,
    throughout: bool,
) -> str | None:
    hold = Held(wide=throughout)
    at = {name: p.detach().double() if throughout else p.detach() for name, p in at.items()}

    def value(there: Tensors, first: bool = False, everything: bool = True) -> float:
        leaves = {name: p.detach().requires_grad_() for name, p in there.items()}

        def held(module: nn.Module) -> Tensor:
            with hold.over(leaves.values(), first, everything):
                return outer(module)

        with torch.enable_grad(), Float64Throughout(every=True) if throughout else nullcontext():
            return float(run.evaluate(held, leaves).detach())

    here = value(at, first=True)
    if value(at) != here:
        return None
    move = {name: _upwards(at[name], one, generator) for name, one in slope.items()}
    ahead, behind = (
        {name: p.add(move[name], alpha=by) if name in move else p for name, p in at.items()} for by in (1, -1)
    )
    free, held = value(ahead, everything=False), value(ahead)
    if not hold.known:
        return None
    eps = torch.finfo(torch.float64 if throughout else next(iter(at.values())).dtype).eps
    apart, change = abs(free - held), abs(held - here)
    if not math.isfinite(apart) or apart <= _NEGLIGIBLE * change + 16 * eps * abs(here):
        return None
    # A hook, or an autograd function, may give what was taken out a derivative of its own.
    difference, expected = (free - value(behind, everything=False)) / 2, float(dot(slope, move))
    if abs(difference - expected) <= _NEGLIGIBLE * change + 16 * eps * abs(here):
        return None
    return f"held, it changes the loss elsewhere by {apart / (change or apart):.2g} of what moving there does"


def _upwards(p: Tensor, slope: Tensor, generator: torch.Generator) -> Tensor:
    """Return a small move up the slope, and a little off it, of what has one."""
    size = float(torch.linalg.vector_norm(slope)) / math.sqrt(max(1, slope.numel()))
    if not size:
        return torch.zeros_like(p)
    off = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
    length = 1e-4 * (float(p.abs().mean()) or 1.0)
    return length * (slope.to(p) / size + 0.3 * off * (slope != 0))


_NEGLIGIBLE = 2e-4
"""A share of the loss's change that is left out, and no matter."""
