"""What a pull-back is, and what every update shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["Pullback", "Pulled", "add_share", "answer", "copy_of", "decay_adjoint", "decayed", "through"]


class Pulled(NamedTuple):
    """Adjoints before an update.

    Attributes:
        gradient: u = (d theta_{t+1} / d g_t)^T v + the state's share; g_t is the gradient of the inner loss.
        parameter: what reaches theta_t directly (weight decay included), without the path through g_t.
        state: what reaches the optimizer state before the step, by entry.
        doubt: a bound on how far `gradient` moves, in norm, where every entry of g_t that is not zero moves by one, to
            first order; None: not known.
    """

    gradient: Tensor
    parameter: Tensor
    state: dict[str, Tensor]
    doubt: Tensor | None = None


@runtime_checkable
class Pullback(Protocol):
    """The adjoint of one optimizer's update of one parameter, elementwise."""

    linear: bool
    """Whether the update is linear in the gradient, so that the adjoint needs neither gradient nor state."""

    def keep(self, group: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
        """Copy from the live `state` of a parameter what `pull` will read (at the first step it is empty)."""
        ...

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
        """Pull `adjoint` (of theta_{t+1}) and `state_adjoint` (of the state after) back through one update.

        Args:
            group: the optimizer's settings at the step.
            state: what `keep` kept of the state before the step.
            parameter: theta_t.
            gradient: g_t as backward() left it (None where `linear`).
            adjoint: v, the shape of the parameter.
            state_adjoint: adjoint by state entry; a missing entry is zero.
            last: nothing before this step is asked for: of the answer only `gradient` counts. Where `linear`, it is
                written over `adjoint`.
            bent: give `doubt`, where it is known.
        """
        ...


def copy_of(state: Mapping[str, Any], *entries: str) -> dict[str, Any]:
    """Copy the `entries` that are there; step counts become floats."""
    present = {key: state[key] for key in entries if state.get(key) is not None}
    return {key: float(value) if key in ("step", "mu_product") else value.clone() for key, value in present.items()}


def decayed(group: Mapping[str, Any], parameter: Tensor, gradient: Tensor) -> tuple[Tensor, float]:
    """Return d = sign * g + weight_decay * theta as torch forms it, and the sign (-1 under ``maximize``)."""
    sign = -1.0 if group.get("maximize", False) else 1.0
    decay = 0.0 if group.get("decoupled_weight_decay", False) else group["weight_decay"]
    direction = gradient if sign > 0 else -gradient
    return (direction.add(parameter, alpha=decay) if decay else direction), sign


def add_share(direction: Tensor, after: Tensor | None, factor: float, d: Tensor | None = None) -> Tensor:
    """Add to `direction`, in place, what comes through a moment: factor * after, times d where that is given."""
    if after is None:
        return direction
    return direction.add_(after, alpha=factor) if d is None else direction.addcmul_(after, d, value=factor)


def through(factor: float, after: Tensor | None, moved: Tensor) -> Tensor:
    """Return factor * (after + moved); `moved` is written over."""
    return (moved if after is None else moved.add_(after)).mul_(factor)


def answer(
    group: Mapping[str, Any],
    adjoint: Tensor,
    direction: Tensor,
    sign: float,
    state: dict[str, Tensor],
    bent: Tensor | None,
    last: bool,
) -> Pulled:
    """Return the answer from the adjoint of d (`direction`) and, where known, the bound on how it bends by d."""
    return Pulled(
        direction if sign > 0 else -direction,
        adjoint if last else decay_adjoint(group, adjoint, direction),
        state,
        None if bent is None else torch.linalg.vector_norm(bent),
    )


def decay_adjoint(group: Mapping[str, Any], adjoint: Tensor, direction: Tensor) -> Tensor:
    """Return what reaches theta_t: v through theta' = theta - ..., and through the decay, coupled or decoupled."""
    decay = group["weight_decay"]
    if group.get("decoupled_weight_decay", False):
        return adjoint * (1 - group["lr"] * decay)
    return adjoint.add(direction, alpha=decay) if decay else adjoint
