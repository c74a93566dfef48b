"""The adjoint of `torch.optim.Adagrad`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steelyard.bilevel.pullback._adaptive import adaptive
from steelyard.bilevel.pullback._base import Pulled, copy_of, decay_adjoint, decayed

__all__ = ["AdagradPullback"]


class AdagradPullback:
    """Adagrad (Duchi et al. 2011): S' = S + d^2; theta' = theta - lr / (1 + (t - 1) lr_decay) d / (sqrt(S') + eps)."""

    linear = False

    def keep(self, group: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
        """The sum of squares (torch fills it at construction) and the step count."""
        return copy_of(state, "step", "sum")

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
        rate = group["lr"] / (1 + state["step"] * group["lr_decay"])
        move = adaptive(d, None, state["sum"], e=rate, f=0.0, rho=1.0, sigma=1.0, kappa=1.0, eps=group["eps"])
        after = state_adjoint.get("sum", torch.zeros_like(parameter))
        direction = -adjoint * move.by_gradient + 2 * d * after
        before = {"sum": after - adjoint * move.by_second}
        return Pulled(sign * direction, decay_adjoint(group, adjoint, direction), before)
