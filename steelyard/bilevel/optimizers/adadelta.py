"""The adjoint of `torch.optim.Adadelta`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from steelyard.bilevel.optimizers._base import ParameterUpdate, Pulled, add_through, answer, copy_of, decayed, through

__all__ = ["AdadeltaPullback"]


class AdadeltaPullback:
    """Adadelta (Zeiler 2012, Algorithm 1), with torch's learning rate.

    Update: q' = r q + (1 - r) d^2; y = P / S d, P = sqrt(a + eps), S = sqrt(q' + eps); a' = r a + (1 - r) y^2;
    theta' = theta - lr y. By algebra, not by rounding, dy/dd = P (r q + eps) / S^3.
    """

    linear = False

    def keep(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The averages of squared gradients and of squared updates."""
        return copy_of(state, "square_avg", "acc_delta")

    def pull(self, update: ParameterUpdate) -> Pulled:
        """See `Pullback.pull`."""
        group, state, state_adjoint = update.group, update.state, update.state_adjoint
        rho, eps = group["rho"], group["eps"]
        d = decayed(update)
        zero = torch.zeros_like(d)
        q, a = state.get("square_avg", zero), state.get("acc_delta", zero)
        held = rho * q + eps
        s, p = held.addcmul(d, d, value=1 - rho).sqrt_(), (a + eps).sqrt_()
        y = add_through(update.adjoint * -group["lr"], state_adjoint.get("acc_delta"), 2 * (1 - rho), p / s * d)
        by_gradient = p * held / s.pow(3)
        curvature = by_gradient * d * y * (3 * (1 - rho)) / s.square() if update.sensitive else None
        after, before = state_adjoint.get("square_avg"), {}
        if not update.last:
            before["square_avg"] = through(rho, after, y * p * d / s.pow(3) * -0.5)
            before["acc_delta"] = add_through(y * d / (2 * p * s), state_adjoint.get("acc_delta"), rho)
        direction = add_through(y * by_gradient, after, 2 * (1 - rho), d)
        return answer(update, direction, before, curvature)
