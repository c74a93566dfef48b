"""The adjoint of `torch.optim.Adam` and `AdamW`, with AMSGrad."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steelyard.bilevel.pullback._adaptive import adaptive
from steelyard.bilevel.pullback._base import Pulled, copy_of, decay_adjoint, decayed

__all__ = ["AdamPullback"]


class AdamPullback:
    """Adam (Kingma and Ba 2015, Algorithm 1), AdamW (Loshchilov and Hutter 2019), AMSGrad (Reddi et al. 2018).

    Update: m' = b1 m + (1 - b1) d; n' = b2 n + (1 - b2) d^2; x = n', or h' = max(h, n') with AMSGrad;
    theta' = theta - y, y = lr / (1 - b1^t) m' / (sqrt(x) / sqrt(1 - b2^t) + eps). A tie in AMSGrad's maximum
    counts for n', where torch's autograd would split it.
    """

    linear = False

    def keep(self, group: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
        """Both moments, the step count, and AMSGrad's maximum."""
        return copy_of(state, "step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")

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
        beta1, beta2 = group["betas"]
        count = state.get("step", 0.0) + 1
        rate = group["lr"] / (1 - beta1**count)
        d, sign = decayed(group, parameter, gradient)
        zero = torch.zeros_like(parameter)
        second = state.get("exp_avg_sq", zero)
        frozen = _frozen(group, state, second * beta2 + (1 - beta2) * d.square())
        move = adaptive(
            d,
            state.get("exp_avg", zero),
            second,
            e=rate * (1 - beta1),
            f=rate * beta1,
            rho=beta2,
            sigma=1 - beta2,
            kappa=math.sqrt(1 - beta2**count),
            eps=group["eps"],
            frozen=frozen,
        )
        y = -adjoint
        first_after, second_after = state_adjoint.get("exp_avg", zero), state_adjoint.get("exp_avg_sq", zero)
        into_x, before = y * move.by_second, {}
        if frozen is not None:
            # What comes back for h' = max(h, n') belongs to whichever of the two was larger.
            held, maximum = ~frozen.isnan(), state_adjoint.get("max_exp_avg_sq", zero)
            before["max_exp_avg_sq"] = torch.where(held, maximum + into_x, zero)
            second_after = torch.where(held, second_after, second_after + maximum)
            into_x = torch.where(held, zero, into_x)
        before["exp_avg"] = beta1 * first_after + y * move.by_first
        before["exp_avg_sq"] = beta2 * (second_after + into_x)
        direction = y * move.by_gradient + (1 - beta1) * first_after + 2 * (1 - beta2) * d * second_after
        return Pulled(sign * direction, decay_adjoint(group, adjoint, direction), before)


def _frozen(group: Mapping[str, Any], state: Mapping[str, Any], second: Tensor) -> Tensor | None:
    """Return AMSGrad's earlier maximum where it stays the maximum, NaN elsewhere; None without AMSGrad."""
    if not group["amsgrad"]:
        return None
    earlier = state.get("max_exp_avg_sq", torch.zeros_like(second))
    return torch.where(earlier > second, earlier, torch.full_like(second, math.nan))
