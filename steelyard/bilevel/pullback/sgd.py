"""The adjoint of `torch.optim.SGD`: momentum, dampening, Nesterov, weight decay, maximize."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from steelyard.bilevel.pullback._base import Pulled, decay_adjoint

__all__ = ["SGDPullback"]


class SGDPullback:
    """SGD is linear in gradient, parameter and buffer: the adjoint needs none of them.

    Update: d = ±g + lambda theta; b' = mu b + (1 - tau) d, or b' = d at the first step;
    theta' = theta - lr (d + mu b' with Nesterov, else b').
    """

    linear = True

    def keep(self, group: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
        """Only whether there was a buffer: the first step has none, and is not damped."""
        return {"started": state.get("momentum_buffer") is not None}

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
        if last:
            return Pulled(self._directly(group, state, adjoint, state_adjoint), adjoint, {})
        momentum = group["momentum"]
        direction = move = adjoint * -group["lr"]
        before = dict(state_adjoint)  # without momentum torch leaves an old buffer alone
        if momentum:
            before = {}
            buffer = move * momentum if group["nesterov"] else move
            if "momentum_buffer" in state_adjoint:
                buffer = buffer + state_adjoint["momentum_buffer"]
            direction = buffer * (1 - group["dampening"]) if state["started"] else buffer
            if group["nesterov"]:
                direction = direction + move
            if state["started"]:
                before["momentum_buffer"] = buffer * momentum
        gradient_adjoint = -direction if group["maximize"] else direction
        return Pulled(gradient_adjoint, decay_adjoint(group, adjoint, direction), before)

    def _directly(
        self, group: Mapping[str, Any], state: Mapping[str, Any], adjoint: Tensor, state_adjoint: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the adjoint of the gradient alone, written over `adjoint`: one number times each of the two."""
        direction = adjoint.mul_(self.factor(group, state))
        after = state_adjoint.get("momentum_buffer") if group["momentum"] else None
        return direction if after is None else direction.add_(after, alpha=_sign(group) * _kept(group, state))

    def factor(self, group: Mapping[str, Any], state: Mapping[str, Any]) -> float:
        """Return what the adjoint of theta_{t+1} alone is multiplied by to give that of the gradient."""
        if not group["momentum"]:
            return -_sign(group) * float(group["lr"])
        kept = _kept(group, state)
        return -_sign(group) * float(group["lr"]) * (1 + kept * group["momentum"] if group["nesterov"] else kept)


def _sign(group: Mapping[str, Any]) -> float:
    return -1.0 if group["maximize"] else 1.0


def _kept(group: Mapping[str, Any], state: Mapping[str, Any]) -> float:
    """Return the share of a gradient that enters the buffer."""
    return 1.0 - group["dampening"] if state["started"] else 1.0
