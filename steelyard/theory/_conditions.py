"""The conditions of Theorem 1, each with an error that says which one is not met."""

from __future__ import annotations

import math

from torch import Tensor

from steelyard._support import _check

__all__ = ["batch_sizes", "confidence", "loss_range"]


def batch_sizes(n: int, s: int, q: int) -> None:
    """Raise ValueError unless 1 <= q <= s <= n: q of a batch of s of n samples."""
    for name, value in (("n", n), ("s", s), ("q", q)):
        _check.integer(name, value, low=1)
    if s > n:
        raise ValueError(f"Theorem 1 needs s <= n: a batch of s = {s} cannot be drawn from n = {n} samples")
    if q > s:
        raise ValueError(f"Theorem 1 needs q <= s: the top q = {q} of a batch of s = {s} losses do not exist")


def confidence(delta: float) -> float:
    """Return `delta` if it lies in (0, 1); ValueError otherwise."""
    number = float("nan") if isinstance(delta, float) and math.isnan(delta) else _check.in_range("delta", delta)
    if not 0 < number < 1:
        raise ValueError(f"Theorem 1 needs delta in (0, 1): it holds with probability 1 - delta, got {number!r}")
    return float(number)


def loss_range(value: float | None, *losses: Tensor) -> float:
    """Return M if it is given, finite, and not contradicted by the losses seen; ValueError otherwise."""
    if value is None:
        raise ValueError(
            "Theorem 1 needs a bounded loss: give loss_range, the M of its section 6.1 "
            "(1 for the 0-1 loss; clip an unbounded loss first)"
        )
    if (isinstance(value, float) and not math.isfinite(value)) or (value := _check.in_range("loss_range", value)) < 0:
        raise ValueError(f"Theorem 1 needs a finite loss_range M >= 0, got {value}")
    for tensor in losses:
        # M bounds differences at one theta between samples, so the range is taken along the samples.
        seen = float((tensor.amax(-1) - tensor.amin(-1)).max())
        if seen > value * (1 + 1e-6) + 1e-12:
            raise ValueError(f"loss_range M = {value} is contradicted: two losses differ by {seen:.6g} under one theta")
    return float(value)
