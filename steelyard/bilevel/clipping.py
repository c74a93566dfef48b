"""Clips of the gradient between backward and the optimizer's step: known functions of the gradient, and their adjoints.

Each is what `torch.nn.utils` does. Of a step is recorded which clips bit, in order, so that the gradient that the
optimizer used can be had of the loss's gradient, and an adjoint brought back the other way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

__all__ = ["Clip", "NormClip", "ValueClip", "clip_stages", "pull_through_clips", "unclipped"]

Tensors = Mapping[str, Tensor]

_SLACK = 1e-6
"""What torch adds to the norm before it divides by it."""


@runtime_checkable
class Clip(Protocol):
    """One clip of the gradients of some parameters, by name."""

    def apply(self, gradients: Tensors) -> dict[str, Tensor]:
        """Return the gradients after the clip."""
        ...

    def pull(self, adjoint: Tensors, after: Tensors) -> dict[str, Tensor]:
        """Return the adjoint of the gradients before the clip; `after` are the gradients after it."""
        ...

    def undo(self, after: Tensors, first: bool) -> dict[str, Tensor] | None:
        """Return gradients that the clip takes to `after`; None where those before cannot be told.

        `first`: no other clip came before, so that any gradients that the clip takes to `after` will do.
        """
        ...

    def repeat(self, leaves: Tensors) -> None:
        """Clip the ``grad`` of `leaves` as the training did, bit for bit."""
        ...


@dataclass(frozen=True)
class NormClip:
    """`torch.nn.utils.clip_grad_norm_` that bit: g' = c g, c = max_norm / (n + 1e-6) < 1, n = ||g||_p.

    With u the adjoint of g', that of g is c u - <u, g'> / (n + 1e-6) dn/dg.

    Attributes:
        names: of the parameters that had a gradient, in the order in which torch took their norms.
        max_norm, norm_type, foreach: torch's arguments; `norm_type` is p.
        norm: n.
    """

    names: tuple[str, ...]
    max_norm: float
    norm_type: float
    foreach: bool | None
    norm: float

    @property
    def factor(self) -> float:
        """Return c."""
        return self.max_norm / (self.norm + _SLACK)

    def apply(self, gradients: Tensors) -> dict[str, Tensor]:
        """See `Clip.apply`; the norm is that of `gradients`."""
        norms = [torch.linalg.vector_norm(gradients[name], self.norm_type) for name in self.names]
        norm = torch.linalg.vector_norm(torch.stack(norms), self.norm_type)
        factor = (self.max_norm / (norm + _SLACK)).clamp(max=1.0)
        return {**gradients, **{name: gradients[name] * factor for name in self.names}}

    def pull(self, adjoint: Tensors, after: Tensors) -> dict[str, Tensor]:
        """See `Clip.pull`."""
        along = sum(float(torch.dot(adjoint[n].double().flatten(), after[n].double().flatten())) for n in self.names)
        share = -along / (self.norm + _SLACK)
        slope = self._slope_of_norm({name: after[name] for name in self.names})
        return {**adjoint, **{n: adjoint[n] * self.factor + (slope[n] * share).to(adjoint[n].dtype) for n in slope}}

    def _slope_of_norm(self, after: Tensors) -> dict[str, Tensor]:
        """Return dn/dg, which is the same at g and at c g; ties of the largest entry share it, as in autograd."""
        norm, p = self.factor * self.norm, self.norm_type
        if not norm:
            return {name: torch.zeros_like(one) for name, one in after.items()}
        if p == 2.0:
            return {name: one / norm for name, one in after.items()}
        if math.isinf(p):
            largest = max(float(one.abs().max()) for one in after.values() if one.numel())
            count = sum(int((one.abs() == largest).sum()) for one in after.values())
            return {name: one.sign() * (one.abs() == largest) / count for name, one in after.items()}
        return {name: one.sign() * (one.abs() / norm).pow(p - 1) for name, one in after.items()}

    def undo(self, after: Tensors, first: bool) -> dict[str, Tensor] | None:
        """See `Clip.undo`."""
        if not self.factor:
            return None
        return {**after, **{name: after[name] / self.factor for name in self.names}}

    def repeat(self, leaves: Tensors) -> None:
        """See `Clip.repeat`."""
        taken = [leaves[name] for name in self.names]
        nn.utils.clip_grad_norm_(taken, self.max_norm, self.norm_type, foreach=self.foreach)


@dataclass(frozen=True)
class ValueClip:
    """`torch.nn.utils.clip_grad_value_`: every entry is brought into [-limit, limit]; one that was outside is constant.

    Attributes:
        names: of the parameters that had a gradient.
        limit, foreach: torch's arguments.
    """

    names: tuple[str, ...]
    limit: float
    foreach: bool | None

    def apply(self, gradients: Tensors) -> dict[str, Tensor]:
        """See `Clip.apply`."""
        return {**gradients, **{name: gradients[name].clamp(-self.limit, self.limit) for name in self.names}}

    def pull(self, adjoint: Tensors, after: Tensors) -> dict[str, Tensor]:
        """See `Clip.pull`."""
        return {**adjoint, **{n: adjoint[n].masked_fill(after[n].abs() >= self.limit, 0) for n in self.names}}

    def undo(self, after: Tensors, first: bool) -> dict[str, Tensor] | None:
        """See `Clip.undo`: a second clip of the same entries changes nothing.

        (Entries that a later clip's undoing has left a rounding inside of the limit are on it.)
        """
        return {**after, **{name: self._on_limit(after[name]) for name in self.names}} if first else None

    def _on_limit(self, after: Tensor) -> Tensor:
        near = after.abs() >= self.limit * (1 - 4 * torch.finfo(after.dtype).eps)
        return torch.where(near, after.sign() * self.limit, after)

    def repeat(self, leaves: Tensors) -> None:
        """See `Clip.repeat`."""
        nn.utils.clip_grad_value_([leaves[name] for name in self.names], self.limit, foreach=self.foreach)


def clip_stages(clips: Sequence[Clip], gradients: Tensors) -> list[Tensors]:
    """Return the gradients before the first clip, after it, and so on; the last are those that the optimizer uses."""
    stages: list[Tensors] = [gradients]
    for clip in clips:
        stages.append(clip.apply(stages[-1]))
    return stages


def unclipped(clips: Sequence[Clip], used: Tensors) -> Tensors | None:
    """Return gradients that the clips take to `used`; None where `used` does not tell.

    Their product with an adjoint that went through `pull_through_clips` is that of the loss's gradient: where the two
    differ, that adjoint is 0.
    """
    found: Tensors | None = used
    for number in range(len(clips) - 1, -1, -1):
        if found is None:
            return None
        found = clips[number].undo(found, first=not number)
    return found


def pull_through_clips(clips: Sequence[Clip], adjoint: Tensors, stages: Sequence[Tensors]) -> dict[str, Tensor]:
    """Return the adjoint of the loss's gradient from that of the gradient that the optimizer used.

    Args:
        clips: of the step, in order.
        adjoint: by parameter.
        stages: as `clip_stages` has them.
    """
    found = dict(adjoint)
    for clip, after in zip(reversed(clips), reversed(stages[1:]), strict=True):
        found = clip.pull(found, after)
    return found
