"""Operators that torch differentiates once only, put together from operators that it differentiates as often as asked.

Seen in torch 2.13: no second derivative for EmbeddingBag, `cdist`, `pdist`, the two multi-class margin losses and
`hardsigmoid`; a wrong one for `weight_norm` on a CPU (`tests/bilevel/test_torch_facts.py`). Attention has its plain
kernel by `sdpa_kernel`. The values are those of the operator up to rounding, and so are the first derivatives, at ties
and zeros too: what a second derivative starts from is the gradient that the training used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["Composites", "PaddingStands", "WithoutPadding"]


class WithoutPadding(TorchFunctionMode):
    """Inside, a table's padding row has its derivative: it is the value's that an outer loss is asked for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.embedding and torch.is_grad_enabled():
            names = ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
            given = {**dict(zip(names, args, strict=False)), **kwargs, "padding_idx": None, "scale_grad_by_freq": False}
            return func(given.pop("input"), given.pop("weight"), **given)
        return func(*args, **kwargs)


class PaddingStands(TorchFunctionMode):
    """Inside, a table's padding row does not move what is read from it: `backward` gives it no gradient."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if func is not F.embedding:
            return found
        given = {**dict(zip(("input", "weight", "padding_idx"), args, strict=False)), **kwargs}
        padding: int | None = given.get("padding_idx")
        if padding is None:
            return found
        row = padding if padding >= 0 else len(given["weight"]) + padding
        return torch.where((given["input"] == row).unsqueeze(-1), found.detach(), found)


class Composites(TorchFunctionMode):
    """Inside, the operators of `_COMPOSITES` are taken apart."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        composite = _COMPOSITES.get(func)
        if composite is not None:
            found = composite(*args, **kwargs)
            if found is not None:
                return found
        return func(*args, **kwargs)


_COMPOSITES: dict[Any, Callable[..., Any]] = {}


def _composite(*functions: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register what stands for `functions`; it returns None for a call that it does not know."""

    def register(composite: Callable[..., Any]) -> Callable[..., Any]:
        for function in functions:
            _COMPOSITES[function] = composite
        return composite

    return register


@_composite(torch._weight_norm)
def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


_SIXTH = float(torch.tensor(1 / 6, dtype=torch.float32))  # torch's slope, in every precision


@_composite(F.hardsigmoid, torch._C._nn.hardsigmoid)
def _hardsigmoid(x: Tensor, inplace: bool = False) -> Tensor:
    inside, line = (x > -3) & (x < 3), x * _SIXTH
    line = line + (x / 6 + 0.5 - line).detach()  # at the kinks the derivative is 0, and so is that of `where`
    found = torch.where(inside, line, (x >= 3).to(x.dtype))
    return x.copy_(found) if inplace else found


@_composite(F.embedding_bag)
def _bags(
    indices: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor | None:
    if max_norm is not None or (offsets is None) == (indices.ndim == 1):
        return None
    if offsets is None:
        offsets = torch.arange(0, indices.numel(), indices.shape[1], device=indices.device)
        indices = indices.reshape(-1)
        per_sample_weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
    number = ("sum", "mean", "max").index(mode)
    found = _embedding_bag(
        weight, indices, offsets, scale_grad_by_freq, number, sparse, per_sample_weights, include_last_offset,
        padding_idx,
    )  # fmt: skip
    return None if found is None else found[0]


@_composite(torch.embedding_bag)
def _embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    if scale_grad_by_freq or sparse:
        return None
    bags = len(offsets) - int(include_last_offset)
    place = torch.arange(len(indices), device=indices.device)
    bag = torch.searchsorted(offsets[:bags].contiguous(), place, right=True) - 1
    if padding_idx is not None:
        kept = indices != padding_idx % len(weight)
        bag, indices = bag[kept], indices[kept]
        per_sample_weights = None if per_sample_weights is None else per_sample_weights[kept]
    rows = F.embedding(indices, weight)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(1)
    count = torch.bincount(bag, minlength=bags)
    if mode == 2:
        found = _largest(rows, bag, bags)
    else:
        found = torch.zeros(bags, weight.shape[1], dtype=rows.dtype, device=rows.device).index_add(0, bag, rows)
    if mode == 1:
        found = found / count.clamp_min(1).unsqueeze(1)
    return found, bag, count, torch.empty(0, dtype=torch.long, device=weight.device)


def _largest(rows: Tensor, bag: Tensor, bags: int) -> Tensor:
    """Return the largest entry of each bag, column by column, 0 for an empty one; of equal ones the first."""
    best: list[Tensor] = []
    for number in range(bags):
        own = rows[bag == number]
        best.append(own.gather(0, own.argmax(0, keepdim=True))[0] if len(own) else rows.new_zeros(rows.shape[1]))
    return torch.stack(best)


def _length(difference: Tensor, p: float) -> Tensor:
    """Return the p-norm over the last axis; at a difference of zero its derivative is 0, as in `cdist`."""
    if p == 0:
        return (difference != 0).to(difference.dtype).sum(-1) + 0 * difference.sum(-1)
    if p == float("inf"):
        return difference.abs().amax(-1)
    if p == 1:
        return difference.abs().sum(-1)
    apart = difference.ne(0).any(-1)
    safe = torch.where(apart.unsqueeze(-1), difference, torch.ones_like(difference))
    powers = safe.square() if p == 2 else _power(safe.abs(), p)
    return torch.where(apart, powers.sum(-1).pow(1 / p), torch.zeros_like(powers[..., 0]))


def _power(size: Tensor, p: float) -> Tensor:
    moving = size != 0
    return torch.where(moving, torch.where(moving, size, torch.ones_like(size)).pow(p), torch.zeros_like(size))


@_composite(torch.cdist)
def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str | None = None) -> Tensor:
    return _length(x1.unsqueeze(-2) - x2.unsqueeze(-3), p)


@_composite(torch.pdist)
def _pdist(input: Tensor, p: float = 2.0) -> Tensor:
    first, second = torch.triu_indices(len(input), len(input), 1, device=input.device)
    return _length(input[first] - input[second], p)


@_composite(F.multi_margin_loss)
def _multi_margin(
    x: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor | None:
    if size_average is not None or reduce is not None:
        return None
    rows, labels = x.reshape(-1, x.shape[-1]), target.reshape(-1, 1)
    slack = margin - rows.gather(1, labels) + rows
    terms = torch.where(slack > 0, slack, torch.zeros_like(slack)).pow(p)
    if weight is not None:
        terms = terms * weight[labels]
    others = torch.ones_like(terms).scatter(1, labels, 0.0)
    return _reduced((terms * others).sum(1) / rows.shape[1], x.ndim, reduction)


@_composite(F.multilabel_margin_loss)
def _multilabel_margin(
    x: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor | None:
    if size_average is not None or reduce is not None:
        return None
    rows, labels = x.reshape(-1, x.shape[-1]), target.reshape(-1, x.shape[-1])
    listed = (labels >= 0).long().cumprod(1).bool()  # up to the first -1
    places = torch.where(listed, labels, 0)
    is_label = torch.zeros_like(rows).scatter_add(1, places, listed.to(rows.dtype)) > 0
    slack = 1 - rows.gather(1, places).unsqueeze(2) + rows.unsqueeze(1)  # (rows, labels, classes)
    counted = listed.unsqueeze(2) & ~is_label.unsqueeze(1) & (slack > 0)
    losses = torch.where(counted, slack, torch.zeros_like(slack)).sum((1, 2)) / rows.shape[1]
    return _reduced(losses, x.ndim, reduction)


def _reduced(losses: Tensor, ndim: int, reduction: str) -> Tensor:
    if reduction == "none":
        return losses if ndim > 1 else losses[0]
    return losses.mean() if reduction == "mean" else losses.sum()
