"""The adjoint of `torch.optim.Adagrad`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steelyard.bilevel.optimizers._adaptive import adaptive
from steelyard.bilevel.optimizers._base import ParameterUpdate, Pulled, add_through, answer, copy_of, decayed, through

__all__ = ["AdagradPullback"]


class AdagradPullback:
    """Adagrad (Duchi et al. 2011): S' = S + d^2; theta' = theta - lr / (1 + (t - 1) lr_decay) d / (sqrt(S') + eps)."""

    linear = False

    def keep(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The sum of squares (torch fills it at construction) and the step count."""
        return copy_of(state, "step", "sum")

    def pull(self, update: ParameterUpdate) -> Pulled:
        """See `Pullback.pull`."""
        group, state, state_adjoint = update.group, update.state, update.state_adjoint
        d = decayed(update)
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
            last=update.last,
            sensitive=update.sensitive,
        )
        y, after, before = -update.adjoint, state_adjoint.get("sum"), {}
        curvature = None if move.curvature is None else move.curvature.mul_(y)
        if move.by_second is not None:
            before["sum"] = through(1.0, after, move.by_second.mul_(y))
        direction = add_through(y.mul_(move.by_gradient), after, 2.0, d)
        return answer(update, direction, before, curvature)
