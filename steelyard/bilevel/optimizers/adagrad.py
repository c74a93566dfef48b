"""The adjoint of `torch.optim.Adagrad`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from steelyard.bilevel.optimizers._adaptive import adaptive
from steelyard.bilevel.optimizers._base import Pulled, add_share, answer, copy_of, decayed, through

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
        last: bool = False,
        bent: bool = False,
    ) -> Pulled:
        """See `Pullback.pull`."""
        assert gradient is not None
        d, sign = decayed(group, parameter, gradient)
        rate = group["lr"] / (1 + state["step"] * group["lr_decay"])
        move = adaptive(
            d,
            None,
            state["sum"],
            e=rate,
            f=0.0,
            rho=1.0,
            sigma=1.0,
            kappa=1.0,
            eps=group["eps"],
            last=last,
            bent=bent,
        )
        y, after, before = -adjoint, state_adjoint.get("sum"), {}
        bent_by = None if move.bend is None else move.bend.mul_(y)
        if move.by_second is not None:
            before["sum"] = through(1.0, after, move.by_second.mul_(y))
        direction = add_share(y.mul_(move.by_gradient), after, 2.0, d)
        return answer(group, adjoint, direction, sign, before, bent_by, last)
