"""The adjoint of `torch.optim.SGD`: momentum, dampening, Nesterov, weight decay, maximize."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        return self.pull_together([update])[0]

    def pull_together(self, updates: Sequence[ParameterUpdate]) -> list[Pulled]:
        """Return `pull` of each of several updates that are `alike`."""
        group, state = updates[0].group, updates[0].state
        adjoints = [one.adjoint for one in updates]
        momentum, kept = group["momentum"], _sign(group) * _kept(group, state)
        moved = momentum and "momentum_buffer" in updates[0].state_adjoint
        after = [one.state_adjoint["momentum_buffer"] for one in updates] if moved else []
        factor = self.factor(group, state)
        if updates[0].last:
            torch._foreach_mul_(adjoints, factor)
            if after:
                torch._foreach_add_(adjoints, after, alpha=kept)
            return [Pulled(one, one, {}) for one in adjoints]
        found = _sums(adjoints, factor, after, kept)
        direct = [decay_adjoint(one, u if _sign(group) > 0 else -u) for one, u in zip(updates, found, strict=True)]
        if not momentum:  # torch leaves an old buffer alone
            states = [dict(one.state_adjoint) for one in updates]
        elif not state["started"]:
            states = [{} for _ in updates]
        else:
            rate = -group["lr"] * (momentum if group["nesterov"] else 1.0)
            buffers = found if (rate, 1.0) == (factor, kept) else _sums(adjoints, rate, after, 1.0)
            states = [{"momentum_buffer": one} for one in torch._foreach_mul(buffers, momentum)]
        return [Pulled(*one) for one in zip(found, direct, states, strict=True)]

    def alike(self, updates: Sequence[ParameterUpdate]) -> bool:
        """Whether they have the same settings and the same entries of state, so that one call serves all."""
        first = updates[0]
        return all(
            one.group is first.group
            and one.state == first.state
            and one.state_adjoint.keys() == first.state_adjoint.keys()
            for one in updates
        )

    def factor(self, group: Mapping[str, Any], state: Mapping[str, Any]) -> float:
        """Return what the adjoint of theta_{t+1} alone is multiplied by to give that of the gradient."""
        if not group["momentum"]:
            return -_sign(group) * float(group["lr"])
        kept = _kept(group, state)
        return -_sign(group) * float(group["lr"]) * (1 + kept * group["momentum"] if group["nesterov"] else kept)


def _sums(adjoints: list[Tensor], factor: float, after: list[Tensor], kept: float) -> list[Tensor]:
    if not after:
        return list(torch._foreach_mul(adjoints, factor))
    return list(torch._foreach_add(after if kept == 1.0 else torch._foreach_mul(after, kept), adjoints, alpha=factor))


def _sign(group: Mapping[str, Any]) -> float:
    return -1.0 if group["maximize"] else 1.0


def _kept(group: Mapping[str, Any], state: Mapping[str, Any]) -> float:
    """Return the share of a gradient that enters the buffer."""
    return 1.0 - group["dampening"] if state["started"] else 1.0
