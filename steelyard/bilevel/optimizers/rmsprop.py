"""The adjoint of `torch.optim.RMSprop`, plain, centered, with momentum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steelyard.bilevel.optimizers._adaptive import adaptive
from steelyard.bilevel.optimizers._base import ParameterUpdate, Pulled, add_through, answer, copy_of, decayed, through

__all__ = ["RMSpropPullback"]


class RMSpropPullback:
    """RMSprop (Tieleman and Hinton 2012): y = d / (r + eps), theta' = theta - lr y.

    r^2 = n' = a n + (1 - a) d^2; centered, r^2 = n' - c'^2 with c' = a c + (1 - a) d (Graves 2013).
    With momentum mu: b' = mu b + y, theta' = theta - lr b'.
    """

    linear = False

    def keep(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The second moment, and the mean gradient where centered."""
        return copy_of(state, "square_avg", "grad_avg")

    def pull(self, update: ParameterUpdate) -> Pulled:
        """See `Pullback.pull`."""
        group, state, state_adjoint = update.group, update.state, update.state_adjoint
        d = decayed(update)
        # What an option switches off, torch leaves alone: its adjoint passes through.
        before = dict(state_adjoint)
        y = update.adjoint * -group["lr"]
        if group["momentum"]:
            y = add_through(y, state_adjoint.get("momentum_buffer"), 1.0)
            before["momentum_buffer"] = group["momentum"] * y
        alpha, eps, after = group["alpha"], group["eps"], state_adjoint.get("square_avg")
        curvature, second = None, state.get("square_avg")
        if group["centered"]:
            zero = torch.zeros_like(d)
            second, mean = (zero, zero) if second is None else (second, state["grad_avg"])
            mean_after = state_adjoint.get("grad_avg")
            by_gradient, by_second, by_mean = _centered(d, second, mean, alpha, eps)
            direction = add_through(y * by_gradient, mean_after, 1 - alpha)
            before["grad_avg"] = through(alpha, mean_after, y * by_mean)
            into_x: Tensor | None = y * by_second
        else:
            move = adaptive(
                d,
                None,
                second,
                e=1.0,
                f=0.0,
                rho=alpha,
                sigma=1 - alpha,
                kappa=1.0,
                eps=eps,
                last=update.last,
                sensitive=update.sensitive,
            )
            curvature = None if move.curvature is None else move.curvature.mul_(y)
            into_x = None if move.by_second is None else move.by_second.mul_(y)
            direction = y * move.by_gradient
        direction = add_through(direction, after, 2 * (1 - alpha), d)
        if into_x is not None:
            before["square_avg"] = through(alpha, after, into_x)
        return answer(update, direction, before, curvature)


def _centered(d: Tensor, n: Tensor, c: Tensor, alpha: float, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return dy/dd (total), dy/dn' and dy/dc' of y = d / (sqrt(n' - c'^2) + eps), without cancellation.

    By algebra n' - c'^2 = a (n - c^2) + a (1 - a) (c - d)^2, and
    dy/dd = [eps + a (n - c c') / r] / (r + eps)^2.
    """
    mean = alpha * c + (1 - alpha) * d
    variance = alpha * (n - c.square()).clamp_min(0) + alpha * (1 - alpha) * (c - d).square()
    r = variance.sqrt()
    safe = torch.where(r > 0, r, torch.ones_like(r))
    scale = r + eps
    zero = torch.zeros_like(r)
    through = torch.where(r > 0, alpha * (n - c * mean) / safe, zero)
    by_gradient = torch.where(r > 0, (eps + through) / scale.square(), 1 / scale)
    by_second = torch.where(r > 0, -d / (2 * safe * scale.square()), zero)
    return by_gradient, by_second, -2 * mean * by_second
