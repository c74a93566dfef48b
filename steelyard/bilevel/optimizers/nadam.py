"""The adjoint of `torch.optim.NAdam`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from steelyard.bilevel.optimizers._adaptive import adaptive
from steelyard.bilevel.optimizers._base import ParameterUpdate, Pulled, add_through, answer, copy_of, decayed, through

__all__ = ["NAdamPullback"]


class NAdamPullback:
    """NAdam (Dozat 2016) with torch's momentum schedule mu_t = b1 (1 - 0.96^(t psi) / 2).

    Update: m', n' as Adam; y = lr [(1 - mu_t) / (1 - P_t) d + mu_{t+1} / (1 - P_{t+1}) m'] / (sqrt(n' / c2) + eps)
    with P_t the running product of the mu and c2 = 1 - b2^t.
    """

    linear = False

    def keep(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Both moments, the step count and the product of the momenta."""
        return copy_of(state, "step", "mu_product", "exp_avg", "exp_avg_sq")

    def pull(self, update: ParameterUpdate) -> Pulled:
        """See `Pullback.pull`."""
        group, state, state_adjoint = update.group, update.state, update.state_adjoint
        beta1, beta2 = group["betas"]
        count = state.get("step", 0.0) + 1
        here, ahead = (beta1 * (1 - 0.5 * 0.96 ** (t * group["momentum_decay"])) for t in (count, count + 1))
        product = state.get("mu_product", 1.0) * here
        plain = group["lr"] * (1 - here) / (1 - product)
        moment = group["lr"] * ahead / (1 - product * ahead)
        d = decayed(update)
        move = adaptive(
            d,
            state.get("exp_avg"),
            state.get("exp_avg_sq"),
            e=plain + moment * (1 - beta1),
            f=moment * beta1,
            rho=beta2,
            sigma=1 - beta2,
            kappa=math.sqrt(1 - beta2**count),
            eps=group["eps"],
            last=update.last,
            sensitive=update.sensitive,
        )
        y = -update.adjoint
        curvature = None if move.curvature is None else move.curvature.mul_(y)
        first_after, second_after = state_adjoint.get("exp_avg"), state_adjoint.get("exp_avg_sq")
        before = {}
        if move.by_first is not None and move.by_second is not None:
            before["exp_avg"] = add_through(move.by_first.mul_(y), first_after, beta1)
            before["exp_avg_sq"] = through(beta2, second_after, move.by_second.mul_(y))
        direction = add_through(y.mul_(move.by_gradient), first_after, 1 - beta1)
        direction = add_through(direction, second_after, 2 * (1 - beta2), d)
        return answer(update, direction, before, curvature)
