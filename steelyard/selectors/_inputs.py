"""What every selector checks before it computes: shape, finiteness, rows that are distributions.

The checks return a detached tensor in float32 or float64 (half precision is promoted: its sums and logarithms are
too coarse to rank by).
"""

from __future__ import annotations

import torch
from torch import Tensor

from steelyard import _check

__all__ = ["class_ids", "count", "distributions", "embeddings", "matrix"]

_ROW_SUM_TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 2e-2}  # a softmax in half precision, up to 1000 classes
_DEFAULT_TOLERANCE = 1e-3


def distributions(name: str, tensor: Tensor, dims: tuple[str, ...] = ("n", "classes")) -> Tensor:
    """Return `tensor` if its last dimension holds distributions over at least 2 classes; ValueError otherwise."""
    values = matrix(name, tensor, dims)
    if values.shape[-1] < 2:
        raise ValueError(
            f"{name} needs at least 2 classes in its last dimension, got {values.shape[-1]}; "
            f"a binary problem has the columns (1 - p, p)"
        )
    if bool((values < 0).any()):
        raise ValueError(f"{name} must be >= 0, its least entry is {float(values.min()):.6g}; pass softmax outputs")
    total = values.sum(-1)
    off = (total - 1).abs()
    if bool((off > _ROW_SUM_TOLERANCE.get(tensor.dtype, _DEFAULT_TOLERANCE)).any()):
        where = (off == off.max()).nonzero()[0].tolist()
        raise ValueError(
            f"{name} must sum to 1 over its last dimension, row {where} sums to {float(total[tuple(where)]):.6g}; "
            f"pass softmax outputs, not logits"
        )
    return values


def embeddings(name: str, tensor: Tensor) -> Tensor:
    """Return `tensor` if it is a finite ``(n, features)`` with at least one feature; ValueError otherwise."""
    values = matrix(name, tensor, ("n", "features"))
    if values.shape[1] == 0:
        raise ValueError(f"{name} has no features: its shape is {tuple(values.shape)}")
    return values


def matrix(name: str, tensor: Tensor, dims: tuple[str, ...]) -> Tensor:
    """Return `tensor` detached if it is floating, finite, of these dimensions and not empty."""
    _check.floats(name, tensor, dims)
    if 0 in tensor.shape[:-1]:
        raise ValueError(f"{name} is empty: its shape is {tuple(tensor.shape)}")
    values = _check.finite(name, tensor.detach())
    return values if values.dtype == torch.float64 else values.float()


def class_ids(name: str, tensor: Tensor, classes: int) -> Tensor:
    """Return `tensor` as int64 if it is ``(n,)`` with entries in 0 .. classes - 1; ValueError otherwise."""
    if tensor.ndim != 1 or tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"{name} must be (n,) class ids, got {tensor.dtype} of shape {tuple(tensor.shape)}")
    if tensor.numel() and not (int(tensor.min()) >= 0 and int(tensor.max()) < classes):
        raise ValueError(
            f"{name} must be in 0 .. {classes - 1} ({classes} classes), got values in "
            f"{int(tensor.min())} .. {int(tensor.max())}"
        )
    return tensor.long()


def count(k: int, n: int) -> int:
    """Return `k` if k different samples can be picked out of `n`; ValueError otherwise."""
    _check.integer("k", k, low=1)
    if k > n:
        raise ValueError(f"k is {k}, but the pool has only {n} samples; lower k or enlarge the pool")
    return k
