"""What every selector checks before it computes: shape, finiteness, rows that are distributions.

The checks return a detached tensor in float32 or float64 (half precision is promoted: its sums and logarithms are
too coarse to rank by). Arrays, lists and what pandas has are taken as by `torch.as_tensor`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers

__all__ = ["class_ids", "count", "distributions", "embeddings", "labels_of", "matrix", "positions", "with_labelled"]

_ROW_SUM_TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 2e-2}  # a softmax in half precision, up to 1000 classes
_DEFAULT_TOLERANCE = 1e-3


def distributions(name: str, value: Tensor | Numbers, dims: tuple[str, ...] = ("n", "classes")) -> Tensor:
    """Return `value` if its last dimension holds distributions over at least 2 classes; ValueError otherwise."""
    values = matrix(name, value, dims)
    if values.shape[-1] < 2:
        raise ValueError(
            f"{name} needs at least 2 classes in its last dimension, got {values.shape[-1]}; "
            f"a binary problem has the columns (1 - p, p)"
        )
    if bool((values < 0).any()):
        raise ValueError(f"{name} must be >= 0, its least entry is {float(values.min()):.6g}; pass softmax outputs")
    given = value.dtype if isinstance(value, Tensor) else values.dtype
    tolerance = _ROW_SUM_TOLERANCE.get(given, _DEFAULT_TOLERANCE)
    total = values.sum(-1)
    off = (total - 1).abs()
    if bool((off > tolerance).any()):
        where = (off == off.max()).nonzero()[0].tolist()
        raise ValueError(
            f"{name} must sum to 1 over its last dimension, row {where} sums to {float(total[tuple(where)]):.6g}; "
            f"pass softmax outputs, not logits"
        )
    return values


def embeddings(name: str, value: Tensor | Numbers) -> Tensor:
    """Return `value` if it is a finite ``(n, features)`` with at least one feature; ValueError otherwise."""
    values = matrix(name, value, ("n", "features"))
    if values.shape[1] == 0:
        raise ValueError(f"{name} has no features: its shape is {tuple(values.shape)}")
    return values


def with_labelled(value: Tensor | Numbers, labelled: Tensor | Numbers | None) -> tuple[Tensor, Tensor]:
    """Return the pool's embeddings and those of the `labelled` ``(m, features)``, m = 0 for None; else ValueError."""
    values = embeddings("embeddings", value)
    if labelled is None or not len(labelled):
        return values, values[:0]
    known = embeddings("labelled", labelled)
    if known.shape[1] != values.shape[1]:
        raise ValueError(f"labelled has {known.shape[1]} features, but embeddings has {values.shape[1]}")
    return values, known.to(values)


def matrix(name: str, value: Tensor | Numbers, dims: tuple[str, ...]) -> Tensor:
    """Return `value` as a detached tensor if it is floating, finite, of these dimensions and not empty."""
    found = _check.floats(name, value, dims)
    if 0 in (found.shape if dims[-1] == "n" else found.shape[:-1]):
        raise ValueError(f"{name} is empty: its shape is {tuple(found.shape)}")
    values = _check.finite(name, found.detach())
    return values if values.dtype == torch.float64 else values.float()


def labels_of(name: str, value: Tensor | Numbers, n: int, classes: int | None) -> Tensor:
    """Return `value` as `class_ids` of `n` samples; ValueError otherwise."""
    ids = class_ids(name, value, classes)
    if ids.shape[0] != n:
        raise ValueError(f"{name} has {ids.shape[0]} entries, but n is {n}")
    return ids


def class_ids(name: str, value: Tensor | Numbers, classes: int | None) -> Tensor:
    """Return `value` as int64 if it is ``(n,)`` with entries in 0 .. classes - 1 (None: any >= 0); else ValueError."""
    found = _check.tensor(name, value)
    if found.ndim != 1 or found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise ValueError(f"{name} must be (n,) class ids, got {found.dtype} of shape {tuple(found.shape)}")
    ids = found.long()
    if classes is None and ids.numel() and int(ids.min()) < 0:
        raise ValueError(f"{name} must be class ids >= 0, the least is {int(ids.min())}")
    if classes is not None and ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < classes):
        raise ValueError(
            f"{name} must be in 0 .. {classes - 1} ({classes} classes), got values in "
            f"{int(ids.min())} .. {int(ids.max())}"
        )
    return ids


def positions(name: str, value: Tensor | Numbers, k: int, n: int, of: str) -> Tensor:
    """Return what a selection gave as int64 ``(k,)``, if it is k different ones in 0 .. n - 1; ValueError otherwise."""
    found = _check.tensor(name, value)
    if found.shape != (k,):
        raise ValueError(f"{name} must return {k} different positions, got shape {tuple(found.shape)}")
    ids = _check.integers(f"what {name} returns", found)
    if different := k - _check.distinct(ids):
        raise ValueError(f"{name} must return {k} different positions, {different} of them are repeated")
    if k and not (int(ids.min()) >= 0 and int(ids.max()) < n):
        raise ValueError(
            f"{name} must return positions in 0 .. {n - 1} of {of}, got {int(ids.min())} .. {int(ids.max())}"
        )
    return ids


def count(k: int, n: int) -> int:
    """Return `k` if k different samples can be picked out of `n`; ValueError otherwise."""
    k = _check.integer("k", k, low=1)
    if k > n:
        raise ValueError(f"k is {k}, but the pool has only {n} samples; lower k or enlarge the pool")
    return k
