"""Several small nets of one architecture in one call: proxies for rank disagreement, draws for BALD."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from steelyard._support import _check

__all__ = ["Ensemble"]


class Ensemble:
    """Models of one architecture with stacked weights, evaluated by one vmap.

    Small nets leave a device idle one by one; stacked, their layers are batched matrix products. The stacked weights
    are leaves that require gradients: an elementwise optimizer (SGD, Adam) over `parameters()` and the SUM of the
    members' losses train every member as if it were alone.

    Args:
        models: at least one; the same class, shapes and train / eval mode. Their weights are copied.

    Raises:
        ValueError: no models. RuntimeError: models of different classes or modes (from torch).

    References:
        `torch.func.stack_module_state`; B. Lakshminarayanan et al., Simple and scalable predictive uncertainty
        estimation using deep ensembles, NeurIPS 2017.

    Example:
        >>> ensemble = Ensemble([nn.Linear(3, 2) for _ in range(4)])
        >>> ensemble(torch.ones(5, 3)).shape
        torch.Size([4, 5, 2])
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        if not models:
            raise ValueError("models is empty; an ensemble needs at least one")
        self._parameters, self._buffers = stack_module_state(list(models))
        # Only its structure is used; `meta` keeps no second copy of the weights.
        self._skeleton = copy.deepcopy(models[0]).to("meta")
        self._size = len(models)

    def __len__(self) -> int:
        return self._size

    def parameters(self) -> list[Tensor]:
        """Return the stacked weights, ``(models, ...)`` each, for an optimizer."""
        return list(self._parameters.values())

    def __call__(self, inputs: Tensor, *, shared: bool = True) -> Tensor:
        """Return every member's outputs ``(models, n, ...)``.

        Args:
            inputs: ``(n, ...)`` for all members, or with ``shared=False`` ``(models, n, ...)``, one batch a member (its
                own data order). Dropout in train mode draws a mask of its own for each member.

        Raises:
            ValueError: ``shared=False`` and another number of members in `inputs`.
        """
        if not shared and inputs.shape[0] != self._size:
            raise ValueError(f"inputs must have {self._size} members first, got the shape {tuple(inputs.shape)}")
        member = vmap(self._member, in_dims=(0, 0, None if shared else 0), randomness="different")
        return member(self._parameters, self._buffers, inputs)

    @torch.no_grad()
    def probabilities(
        self, inputs: Shaped[Tensor, "n *shape"], *, chunk: int | None = None
    ) -> Float[Tensor, "models n classes"]:
        """Return softmax outputs ``(models, n, classes)``: the draws that `bald` takes.

        Args:
            inputs: ``(n, ...)``. chunk: samples per pass (default: all).

        Raises:
            ValueError: `chunk` < 1.
        """
        return torch.cat([self(part).softmax(2) for part in self._chunks(inputs, chunk)], dim=1)

    @torch.no_grad()
    def losses(
        self, inputs: Shaped[Tensor, "n *shape"], labels: Shaped[Tensor, " n"], *, chunk: int | None = None
    ) -> Float[Tensor, "models n"]:
        """Return cross-entropies ``(models, n)``: what `rank_disagreement` takes.

        Args:
            inputs: ``(n, ...)``. labels: ``(n,)`` class ids. chunk: samples per pass (default: all).

        Raises:
            ValueError: `chunk` < 1, or another n in `labels`.
        """
        _check.same_length(inputs=inputs, labels=labels)
        parts = zip(self._chunks(inputs, chunk), self._chunks(labels, chunk), strict=True)
        return torch.cat([-self(x).log_softmax(2).gather(2, self._each(y))[..., 0] for x, y in parts], dim=1)

    def _member(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return functional_call(self._skeleton, (parameters, buffers), (inputs,))

    def _each(self, labels: Tensor) -> Tensor:
        return labels.long()[None, :, None].expand(self._size, -1, 1)

    def _chunks(self, tensor: Tensor, chunk: int | None) -> Sequence[Tensor]:
        return (tensor,) if chunk is None else tensor.split(_check.integer("chunk", chunk, low=1))
