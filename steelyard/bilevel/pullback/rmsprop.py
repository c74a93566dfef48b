"""The adjoint of `torch.optim.RMSprop`, plain, centered, with momentum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steelyard.bilevel.pullback._adaptive import adaptive
from steelyard.bilevel.pullback._base import Pulled, copy_of, decay_adjoint, decayed

__all__ = ["RMSpropPullback"]


class RMSpropPullback:
    """RMSprop (Tieleman and Hinton 2012): y = d / (r + eps), theta' = theta - lr y.

    r^2 = n' = a n + (1 - a) d^2; centered, r^2 = n' - c'^2 with c' = a c + (1 - a) d (Graves 2013).
    With momentum mu: b' = mu b + y, theta' = theta - lr b'.
    """

    linear = False

    def keep(self, group: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
        """The second moment, and the mean gradient where centered."""
        return copy_of(state, "square_avg", "grad_avg")

    def pull(
        self,
        group: Mapping[str, Any],
        state: Mapping[str, Any],
        parameter: Tensor,
        gradient: Tensor | None,
        adjoint: Tensor,
        state_adjoint: Mapping[str, Tensor],
    ) -> Pulled:
        """See `Pullback.pull`."""
        assert gradient is not None
        d, sign = decayed(group, parameter, gradient)
        # What an option switches off, torch leaves alone: its adjoint passes through.
        zero, before = torch.zeros_like(parameter), dict(state_adjoint)
        y = -group["lr"] * adjoint
        if group["momentum"]:
            y = y + state_adjoint.get("momentum_buffer", zero)
            before["momentum_buffer"] = group["momentum"] * y
        second, mean = state.get("square_avg", zero), state.get("grad_avg", zero)
        alpha, eps = group["alpha"], group["eps"]
        after = state_adjoint.get("square_avg", zero)
        if group["centered"]:
            mean_after = state_adjoint.get("grad_avg", zero)
            by_gradient, by_second, by_mean = _centered(d, second, mean, alpha, eps)
            direction = y * by_gradient + (1 - alpha) * mean_after
            before["grad_avg"] = alpha * (mean_after + y * by_mean)
        else:
            move = adaptive(d, None, second, e=1.0, f=0.0, rho=alpha, sigma=1 - alpha, kappa=1.0, eps=eps)
            direction, by_second = y * move.by_gradient, move.by_second
        direction = direction + 2 * (1 - alpha) * d * after
        before["square_avg"] = alpha * (after + y * by_second)
        return Pulled(sign * direction, decay_adjoint(group, adjoint, direction), before)


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
