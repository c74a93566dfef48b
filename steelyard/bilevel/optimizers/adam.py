"""The adjoint of `torch.optim.Adam` and `AdamW`, with AMSGrad."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steelyard.bilevel.optimizers._adaptive import adaptive
from steelyard.bilevel.optimizers._base import ParameterUpdate, Pulled, add_through, answer, copy_of, decayed, through

__all__ = ["AdamPullback"]


class AdamPullback:
    """Adam (Kingma and Ba 2015, Algorithm 1), AdamW (Loshchilov and Hutter 2019), AMSGrad (Reddi et al. 2018).

    Update: m' = b1 m + (1 - b1) d; n' = b2 n + (1 - b2) d^2; x = n', or h' = max(h, n') with AMSGrad;
    theta' = theta - y, y = lr / (1 - b1^t) m' / (sqrt(x) / sqrt(1 - b2^t) + eps). A tie in AMSGrad's maximum
    counts for n', where torch's autograd would split it.
    """

    linear = False

    def keep(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Both moments, the step count, and AMSGrad's maximum."""
        return copy_of(state, "step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")

    def pull(self, update: ParameterUpdate) -> Pulled:
        """See `Pullback.pull`."""
        group, state, state_adjoint = update.group, update.state, update.state_adjoint
        beta1, beta2 = group["betas"]
        count = state.get("step", 0.0) + 1
        rate = group["lr"] / (1 - beta1**count)
        d = decayed(update)
        second = state.get("exp_avg_sq")
        frozen = _frozen(group, state, second, d, beta2)
        move = adaptive(
            d,
            state.get("exp_avg"),
            second,
            e=rate * (1 - beta1),
            f=rate * beta1,
            rho=beta2,
            sigma=1 - beta2,
            kappa=math.sqrt(1 - beta2**count),
            eps=group["eps"],
            frozen=frozen,
            last=update.last,
            sensitive=update.sensitive,
        )
        y = -update.adjoint
        curvature = None if move.curvature is None else move.curvature.mul_(y)
        first_after, second_after = state_adjoint.get("exp_avg"), state_adjoint.get("exp_avg_sq")
        into_x, before = None if move.by_second is None else move.by_second.mul_(y), {}
        if frozen is not None:
            # What comes back for h' = max(h, n') belongs to whichever of the two was larger.
            held, zero = ~frozen.isnan(), torch.zeros_like(d)
            maximum = state_adjoint.get("max_exp_avg_sq", zero)
            second_after = torch.where(held, zero, maximum).add_(zero if second_after is None else second_after)
            if into_x is not None:
                before["max_exp_avg_sq"] = torch.where(held, maximum + into_x, zero)
                into_x = torch.where(held, zero, into_x)
        if into_x is not None and move.by_first is not None:
            before["exp_avg"] = add_through(move.by_first.mul_(y), first_after, beta1)
            before["exp_avg_sq"] = through(beta2, second_after, into_x)
        direction = add_through(y.mul_(move.by_gradient), first_after, 1 - beta1)
        direction = add_through(direction, second_after, 2 * (1 - beta2), d)
        return answer(update, direction, before, curvature)


def _frozen(
    group: Mapping[str, Any], state: Mapping[str, Any], second: Tensor | None, d: Tensor, beta2: float
) -> Tensor | None:
    """Return AMSGrad's earlier maximum where it stays the maximum, NaN elsewhere; None without AMSGrad."""
    if not group["amsgrad"]:
        return None
    now = (torch.zeros_like(d) if second is None else second * beta2).addcmul_(d, d, value=1 - beta2)
    earlier = state.get("max_exp_avg_sq", torch.zeros_like(now))
    return torch.where(earlier > now, earlier, torch.full_like(now, math.nan))
