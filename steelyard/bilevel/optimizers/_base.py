"""What a pull-back is, and what every update shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = [
    "ParameterUpdate",
    "Pullback",
    "Pulled",
    "add_through",
    "answer",
    "copy_of",
    "decay_adjoint",
    "decayed",
    "through",
]


class ParameterUpdate(NamedTuple):
    """One parameter in one update of the optimizer, with the adjoints of what came out: all that a pull-back reads.

    Attributes:
        group: the optimizer's settings at the step.
        state: what `Pullback.keep` kept of the optimizer's state before the step.
        parameter: theta_t.
        gradient: g_t as backward() left it (None where the pull-back is `linear`).
        adjoint: v, the adjoint of theta_{t+1}, of the shape of the parameter.
        state_adjoint: adjoint of the state after the step, by entry; a missing entry is zero.
        last: nothing before this step is asked for: of the answer only `gradient` counts. Where the pull-back is
            `linear`, the answer is written over `adjoint`.
        sensitive: `Pulled.sensitivity` is asked for.
    """

    group: Mapping[str, Any]
    state: Mapping[str, Any]
    parameter: Tensor
    gradient: Tensor | None
    adjoint: Tensor
    state_adjoint: Mapping[str, Tensor]
    last: bool = False
    sensitive: bool = False


class Pulled(NamedTuple):
    """Adjoints before an update.

    Attributes:
        gradient: u = (d theta_{t+1} / d g_t)^T v + what comes back through the state; g_t is the gradient of the inner
            loss.
        parameter: what reaches theta_t directly (weight decay included), without the path through g_t.
        state: what reaches the optimizer state before the step, by entry.
        sensitivity: a bound on how far `gradient` moves, in norm, where every entry of g_t that is not zero moves by
            one, to first order; None: not known.
    """

    gradient: Tensor
    parameter: Tensor
    state: dict[str, Tensor]
    sensitivity: Tensor | None = None


@runtime_checkable
class Pullback(Protocol):
    """The adjoint of one optimizer's update of one parameter, elementwise."""

    linear: bool
    """Whether the update is linear in the gradient, so that the adjoint needs neither gradient nor state."""

    def keep(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Copy from the live `state` of a parameter what `pull` will read (at the first step it is empty)."""
        ...

    def pull(self, update: ParameterUpdate) -> Pulled:
        """Pull the adjoints of parameter and state back through one update."""
        ...


def copy_of(state: Mapping[str, Any], *entries: str) -> dict[str, Any]:
    """Copy the `entries` that are there; step counts become floats."""
    present = {key: state[key] for key in entries if state.get(key) is not None}
    return {key: float(value) if key in ("step", "mu_product") else value.clone() for key, value in present.items()}


def decayed(update: ParameterUpdate) -> Tensor:
    """Return d = sign * g + weight_decay * theta as torch forms it."""
    group, gradient = update.group, update.gradient
    assert gradient is not None
    decay = 0.0 if group.get("decoupled_weight_decay", False) else group["weight_decay"]
    direction = -gradient if _maximised(group) else gradient
    return direction.add(update.parameter, alpha=decay) if decay else direction


def add_through(direction: Tensor, after: Tensor | None, factor: float, d: Tensor | None = None) -> Tensor:
    """Add to `direction`, in place, what comes through a moment: factor * after, times d where that is given."""
    if after is None:
        return direction
    return direction.add_(after, alpha=factor) if d is None else direction.addcmul_(after, d, value=factor)


def through(factor: float, after: Tensor | None, moved: Tensor) -> Tensor:
    """Return factor * (after + moved); `moved` is written over."""
    return (moved if after is None else moved.add_(after)).mul_(factor)


def answer(
    update: ParameterUpdate, direction: Tensor, state: dict[str, Tensor], curvature: Tensor | None = None
) -> Pulled:
    """Return the answer from the adjoint of d (`direction`).

    `curvature`, where it is known, bounds the derivative of `direction` by d, entry by entry.
    """
    return Pulled(
        -direction if _maximised(update.group) else direction,
        update.adjoint if update.last else decay_adjoint(update, direction),
        state,
        None if curvature is None else torch.linalg.vector_norm(curvature),
    )


def decay_adjoint(update: ParameterUpdate, direction: Tensor) -> Tensor:
    """Return what reaches theta_t: v through theta' = theta - ..., and through the decay, coupled or decoupled."""
    group, adjoint = update.group, update.adjoint
    decay = group["weight_decay"]
    if group.get("decoupled_weight_decay", False):
        return adjoint * (1 - group["lr"] * decay)
    return adjoint.add(direction, alpha=decay) if decay else adjoint


def _maximised(group: Mapping[str, Any]) -> bool:
    return bool(group.get("maximize", False))
