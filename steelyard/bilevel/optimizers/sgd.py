"""The adjoint of `torch.optim.SGD`: momentum, dampening, Nesterov, weight decay, maximize."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steelyard.bilevel.optimizers._base import ParameterUpdate, Pulled, decay_adjoint

__all__ = ["SGDPullback"]


class SGDPullback:
    """SGD is linear in gradient, parameter and buffer: the adjoint needs none of them.

    Update: d = ±g + lambda theta; b' = mu b + (1 - tau) d, or b' = d at the first step;
    theta' = theta - lr (d + mu b' with Nesterov, else b').
    """

    linear = True

    def keep(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Only whether there was a buffer: the first step has none, and is not damped."""
        return {"started": state.get("momentum_buffer") is not None}

    def pull(self, update: ParameterUpdate) -> Pulled:
        """See `Pullback.pull`."""
        group, state, adjoint = update.group, update.state, update.adjoint
        momentum, kept = group["momentum"], _sign(group) * _kept(group, state)
        after = update.state_adjoint.get("momentum_buffer") if momentum else None
        factor = self.factor(group, state)
        if update.last:
            scaled = adjoint.mul_(factor)
            return Pulled(scaled if after is None else scaled.add_(after, alpha=kept), adjoint, {})
        u = _sum(adjoint, factor, after, kept)
        direct = decay_adjoint(update, u if _sign(group) > 0 else -u)
        if not momentum:
            return Pulled(u, direct, dict(update.state_adjoint))  # torch leaves an old buffer alone
        if not state["started"]:
            return Pulled(u, direct, {})
        rate = -group["lr"] * (momentum if group["nesterov"] else 1.0)
        buffer = u if (rate, 1.0) == (factor, kept) else _sum(adjoint, rate, after, 1.0)
        return Pulled(u, direct, {"momentum_buffer": buffer * momentum})

    def factor(self, group: Mapping[str, Any], state: Mapping[str, Any]) -> float:
        """Return what the adjoint of theta_{t+1} alone is multiplied by to give that of the gradient."""
        if not group["momentum"]:
            return -_sign(group) * float(group["lr"])
        kept = _kept(group, state)
        return -_sign(group) * float(group["lr"]) * (1 + kept * group["momentum"] if group["nesterov"] else kept)


def _sum(adjoint: Tensor, factor: float, after: Tensor | None, kept: float) -> Tensor:
    if after is None:
        return adjoint * factor
    return torch.add(after if kept == 1.0 else after * kept, adjoint, alpha=factor)


def _sign(group: Mapping[str, Any]) -> float:
    return -1.0 if group["maximize"] else 1.0


def _kept(group: Mapping[str, Any], state: Mapping[str, Any]) -> float:
    """Return the share of a gradient that enters the buffer."""
    return 1.0 - group["dampening"] if state["started"] else 1.0
