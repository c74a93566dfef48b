"""Weights as functions of parameters: what the single-loop solvers move."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from steelyard._support import _check
from steelyard.reweight.shared import Shared

__all__ = ["FeatureWeights", "Form", "SampleWeights"]

Form = Literal["sigmoid", "softplus", "projected"]


class SampleWeights(nn.Module):
    """A weight for every sample, or one for all samples of a source: ``weights(index) -> (k,)``.

    | ``form`` | w, x a parameter | where w may be |
    |---|---|---|
    | ``sigmoid`` | 1 / (1 + exp(-x)) | (0, 1) |
    | ``softplus`` | log(1 + exp(x)) | (0, infinity) |
    | ``projected`` | x, clipped after a step | [0, infinity) |

    Args:
        count: how many samples, with the global ids 0, 1, ..., count-1; or `Shared`, the sources of the samples.
        form: see the table.
        start: the weight of all at first; None: 0.5 for a sigmoid, else 1.

    Attributes:
        raw: ``(count,)`` the parameter x.

    Raises:
        ValueError: count < 1, an unknown form, or a start outside of what the form can be.

    Example:
        >>> weights = SampleWeights(3)
        >>> weights(torch.tensor([2, 0])).tolist()
        [0.5, 0.5]
        >>> SampleWeights(Shared(torch.tensor([0, 1, 1])), "projected").raw.shape
        torch.Size([2])
    """

    def __init__(self, count: int | Shared, form: Form = "sigmoid", start: float | None = None) -> None:
        super().__init__()
        self.form = _check.choice("form", form, tuple(_STARTS))
        self.shared = count if isinstance(count, Shared) else None
        number = count.count if isinstance(count, Shared) else _check.integer("count", count, low=1)
        assert number is not None  # set by Shared
        start = _STARTS[self.form] if start is None else start
        start = _check.in_range("start", start, low=0.0, open_low=True)
        if self.form == "sigmoid" and start >= 1:
            raise ValueError(f"start must be in (0, 1) for a sigmoid, got {start}; softplus has no upper bound")
        self.raw = nn.Parameter(torch.full((number,), _INVERSES[self.form](start)))

    def forward(self, index: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
        """Return the weights ``(k,)`` of the samples with these ids.

        Raises:
            ValueError: an id that is not among the samples.
        """
        raw = self.raw[self.rows(index)]
        if self.form == "projected":
            return raw
        return torch.sigmoid(raw) if self.form == "sigmoid" else F.softplus(raw)

    def rows(self, index: Int[Tensor, " k"]) -> Int[Tensor, " k"]:
        """Return which entries of `raw` the samples' weights depend on."""
        if self.shared is not None:
            return self.shared.sources_of(index).to(self.raw.device)
        _check_ids(index, len(self.raw), "give SampleWeights the number of samples")
        return index.to(self.raw.device)

    @torch.no_grad()
    def project(self) -> None:
        """Put the weights back to where the form has them: a solver calls it after each of its steps."""
        if self.form == "projected":
            self.raw.clamp_(min=0)


class FeatureWeights(nn.Module):
    """Weights that are a function of a few numbers known of each sample: its loss, say: ``weights(index) -> (k,)``.

    Few parameters cannot fit the samples that judge them, where a weight a sample can (studies/data_cleaning).

    Args:
        features: ``(n, d)`` of the samples with the ids 0 .. n-1.
        net: from ``(k, d)`` to ``(k,)`` or ``(k, 1)``; None: a linear layer that starts at 0.
            A sigmoid is taken of what it returns.

    Example:
        >>> weights = FeatureWeights(torch.tensor([[0.1], [2.0]]))
        >>> weights(torch.tensor([1, 0])).tolist()
        [0.5, 0.5]
    """

    features: Tensor

    def __init__(self, features: Float[Tensor, "n d"], net: nn.Module | None = None) -> None:
        super().__init__()
        features = _check.finite("features", _check.floats("features", features, ("n", "d")))
        if net is None:
            net = nn.Linear(features.shape[1], 1)
            nn.init.zeros_(net.weight)
            nn.init.zeros_(net.bias)
        self.net = _check.instance("net", net, nn.Module, "a module from features (k, d) to (k,)")
        dtype = next((p.dtype for p in self.net.parameters()), features.dtype)
        self.register_buffer("features", features.detach().to(dtype), persistent=False)

    def forward(self, index: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
        """Return the weights ``(k,)`` in (0, 1) of the samples with these ids.

        Raises:
            ValueError: an id that is not among the samples; a net that does not give one number a sample.
        """
        _check_ids(index, len(self.features), "give FeatureWeights a row for every sample")
        found: Tensor = self.net(self.features[index.to(self.features.device)])
        if found.shape not in ((len(index),), (len(index), 1)):
            raise ValueError(f"net must give one number a sample, ({len(index)},), got {tuple(found.shape)}")
        return torch.sigmoid(found.reshape(len(index)))


def _check_ids(index: Tensor, count: int, remedy: str) -> None:
    """Raise ValueError where an id is none of 0 .. count-1."""
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < count:
        raise ValueError(
            f"the weights are of samples with the ids 0 .. {count - 1}, got {int(index.min())} .. "
            f"{int(index.max())}: {remedy}, and Batch ids from 0 on"
        )


_STARTS: dict[Form, float] = {"sigmoid": 0.5, "softplus": 1.0, "projected": 1.0}
_INVERSES = {
    "sigmoid": lambda w: math.log(w) - math.log1p(-w),
    "softplus": lambda w: w + math.log(-math.expm1(-w)),
    "projected": lambda w: w,
}
