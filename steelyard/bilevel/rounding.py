"""How much the rounding of a recorded gradient g moves u, the direction that an optimizer's update makes of it.

At a cold start Adam's update moves by e eps / (|g| + eps)^2, so that where g is near eps the rounding of g decides u.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from steelyard.bilevel.optimizers import ParameterUpdate, Pulled

__all__ = ["Norm", "Rounding", "noise_of", "norm_of", "typical_noise"]

_LOOSE = 1e3
"""How many times what is allowed the first-order bound may be before the noise itself need not be put in to know."""


class Norm:
    """The norm of many tensors, from the norm of each, which is not waited for; infinite where one is not known."""

    def __init__(self) -> None:
        self._terms: list[Tensor] = []
        self._known = True

    def add(self, term: Tensor | None) -> None:
        """Add the norm of one more tensor."""
        if term is None:
            self._known = False
        else:
            self._terms.append(term)

    def value(self) -> float:
        """Return the norm of all."""
        if not self._known:
            return float("inf")
        return float(torch.linalg.vector_norm(torch.stack(self._terms).double())) if self._terms else 0.0


class Rounding:
    """Norms that are collected while u is pulled back: of u, and of a bound on how far noise in g moves it.

    Entries of which the gradient is exactly 0 are left out of both: where a unit is dead u is as large as it can be,
    and no sample's loss moves along it.

    Args:
        noise: what rounding does to an entry of the gradient, by parameter (`noise_of`). A parameter that is left out
            counts in `size` alone: where its gradient is nothing but rounding its part of u may be so large that the
            others', which decide the answer, would vanish beside it.
    """

    def __init__(self, noise: Mapping[str, Tensor]) -> None:
        self._noise = noise
        self._size, self._watched, self._bound = Norm(), Norm(), Norm()

    def watch(self, name: str) -> Callable[[ParameterUpdate, Pulled], None]:
        """Return what looks on while the parameter `name` is pulled back."""
        noise = self._noise.get(name)

        def look(update: ParameterUpdate, pulled: Pulled) -> None:
            assert update.gradient is not None
            size = torch.linalg.vector_norm(update.gradient.sign().mul_(pulled.gradient))
            self._size.add(size)
            if noise is None:
                return
            self._watched.add(size)
            self._bound.add(None if pulled.sensitivity is None else pulled.sensitivity * noise)

        return look

    def size(self) -> float:
        """Return the norm of u."""
        return self._size.value()

    def exceeds(self, tolerance: float, moved: Callable[[], float]) -> bool:
        """Whether the noise moves u by more than `tolerance`, relative to its norm (of the parameters with a noise).

        `moved` returns by how much the noise does so, by putting it in. It is asked only where the bound, which was 6
        to 100 times too large in what was measured, leaves that open.
        """
        allowed, bound = tolerance * self._watched.value(), self._bound.value()
        if bound <= allowed:
            return False
        return allowed * _LOOSE < bound < float("inf") or moved() > allowed


def noise_of(gradient: Tensor, eps: float) -> Tensor:
    """Return what rounding does to an entry of a gradient, as a scalar: twice the precision `eps` times its size."""
    return 2 * eps * torch.linalg.vector_norm(gradient) / max(1, gradient.numel()) ** 0.5


def typical_noise(gradients: Mapping[str, Tensor], eps: float) -> float:
    """Return what rounding does to an entry of the whole gradient: an entry that is only noise is as large as that."""
    count = sum(g.numel() for g in gradients.values())
    return 2 * eps * norm_of(gradients) / max(1, count) ** 0.5


def norm_of(tensors: Mapping[str, Tensor]) -> float:
    """Return the norm of all tensors together, of which there is at least one."""
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(one) for one in tensors.values()])))
