"""The adjoint of `torch.optim.RAdam`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from steelyard.bilevel.optimizers._adaptive import adaptive
from steelyard.bilevel.optimizers._base import ParameterUpdate, Pulled, add_through, answer, copy_of, decayed, through

__all__ = ["RAdamPullback"]

_RECTIFIED_FROM = 5.0


class RAdamPullback:
    """RAdam (Liu et al. 2020, Algorithm 2): Adam whose first steps, of too few samples for a variance, are plain.

    Update: m', n' as Adam; c1 = 1 - b1^t, c2 = 1 - b2^t; rho_t = rho - 2 t b2^t / c2, rho = 2 / (1 - b2) - 1.
    Where rho_t > 5, y = lr r_t sqrt(c2) / c1 m' / (sqrt(n') + eps) with the rectification r_t, else y = lr / c1 m'.
    """

    linear = False

    def keep(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Both moments and the step count."""
        return copy_of(state, "step", "exp_avg", "exp_avg_sq")

    def pull(self, update: ParameterUpdate) -> Pulled:
        """See `Pullback.pull`."""
        group, state, state_adjoint = update.group, update.state, update.state_adjoint
        beta1, beta2 = group["betas"]
        count = state.get("step", 0.0) + 1
        rate = group["lr"] / (1 - beta1**count)
        rectification = _rectification(beta2, count)
        d = decayed(update)
        y = -update.adjoint
        first_after, second_after = state_adjoint.get("exp_avg"), state_adjoint.get("exp_avg_sq")
        before, curvature = {}, None
        if rectification is None:
            direction = y * (rate * (1 - beta1))
            if not update.last:
                before["exp_avg"] = add_through(y * (rate * beta1), first_after, beta1)
                if second_after is not None:
                    before["exp_avg_sq"] = second_after * beta2
            curvature = direction.new_zeros(()) if update.sensitive else None
        else:
            rate *= rectification * math.sqrt(1 - beta2**count)
            move = adaptive(
                d,
                state.get("exp_avg"),
                state.get("exp_avg_sq"),
                e=rate * (1 - beta1),
                f=rate * beta1,
                rho=beta2,
                sigma=1 - beta2,
                kappa=1.0,
                eps=group["eps"],
                last=update.last,
                sensitive=update.sensitive,
            )
            curvature = None if move.curvature is None else move.curvature.mul_(y)
            direction = y * move.by_gradient
            if move.by_first is not None and move.by_second is not None:
                before["exp_avg"] = add_through(move.by_first.mul_(y), first_after, beta1)
                before["exp_avg_sq"] = through(beta2, second_after, move.by_second.mul_(y))
        direction = add_through(direction, first_after, 1 - beta1)
        direction = add_through(direction, second_after, 2 * (1 - beta2), d)
        return answer(update, direction, before, curvature)


def _rectification(beta2: float, count: float) -> float | None:
    """Return r_t, or None for a step that is plain."""
    limit = 2 / (1 - beta2) - 1
    rho = limit - 2 * count * beta2**count / (1 - beta2**count)
    if rho <= _RECTIFIED_FROM:
        return None
    return math.sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho))
