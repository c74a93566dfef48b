"""The adjoint of `torch.optim.Adamax`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from steelyard.bilevel.optimizers._base import ParameterUpdate, Pulled, add_through, answer, copy_of, decayed

__all__ = ["AdamaxPullback"]


class AdamaxPullback:
    """Adamax (Kingma and Ba 2015, Algorithm 2): Adam with the infinity norm of past gradients for a second moment.

    Update: m' = b1 m + (1 - b1) d; n' = max(b2 n, |d| + eps); theta' = theta - y, y = lr / (1 - b1^t) m' / n'.

    Where |d| + eps is the larger one, n' moves with d: dy/dd = lr / (1 - b1^t) ((1 - b1) eps - sign(d) b1 m) / n'^2,
    where the terms in d cancel by algebra, not by rounding. A tie counts for |d| + eps. At d = 0 the kink of |d|
    counts as flat.
    """

    linear = False

    def keep(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The first moment, the infinity norm and the step count."""
        return copy_of(state, "step", "exp_avg", "exp_inf")

    def pull(self, update: ParameterUpdate) -> Pulled:
        """See `Pullback.pull`."""
        group, state, state_adjoint = update.group, update.state, update.state_adjoint
        beta1, beta2 = group["betas"]
        rate = group["lr"] / (1 - beta1 ** (state.get("step", 0.0) + 1))
        d = decayed(update)
        zero = torch.zeros_like(d)
        first, norm = state.get("exp_avg", zero), state.get("exp_inf", zero)
        now, sign = d.abs().add_(group["eps"]), d.sign()
        live = now >= norm * beta2
        n = torch.where(live, now, norm * beta2)
        moving = ((1 - beta1) * group["eps"] - sign * first * beta1) / n.square()
        by_gradient = rate * torch.where(live, moving, (1 - beta1) / n)
        y = -update.adjoint
        curvature = None
        if update.sensitive:  # of the moving part; exactly
            curvature = torch.where(live, by_gradient * sign * y, zero).mul_(2).div_(n)
        first_after, norm_after = state_adjoint.get("exp_avg"), state_adjoint.get("exp_inf", zero)
        before = {}
        if not update.last:
            before["exp_avg"] = add_through(y * (rate * beta1) / n, first_after, beta1)
            into_n = y * (-rate) * (beta1 * first + (1 - beta1) * d) / n.square() + norm_after
            before["exp_inf"] = torch.where(live, zero, beta2 * into_n)
        direction = add_through(y * by_gradient, first_after, 1 - beta1)
        direction = direction + torch.where(live, norm_after * sign, zero)
        return answer(update, direction, before, curvature)
