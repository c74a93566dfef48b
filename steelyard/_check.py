"""Argument checks with one wording: the argument, the value, what would be right.

Every check returns its value, so that it can stand in an assignment.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["choice", "finite", "in_range", "integer", "nearest", "same_length"]

T = TypeVar("T")


def integer(name: str, value: int, *, low: int | None = None, high: int | None = None) -> int:
    """Return `value` if it is an int (bool excluded) in [low, high]; ValueError or TypeError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r} ({type(value).__name__})")
    if (low is not None and value < low) or (high is not None and value > high):
        raise ValueError(f"{name} must be {_interval(low, high, '[', ']')}, got {value}")
    return value


def in_range(
    name: str,
    value: float | int,
    *,
    low: float | int | None = None,
    high: float | int | None = None,
    open_low: bool = False,
    open_high: bool = False,
) -> float | int:
    """Return `value` if it is a finite real number in the interval; ValueError or TypeError otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a real number, got {value!r} ({type(value).__name__})")
    below = low is not None and (value <= low if open_low else value < low)
    above = high is not None and (value >= high if open_high else value > high)
    if not math.isfinite(value) or below or above:
        interval = _interval(low, high, "(" if open_low else "[", ")" if open_high else "]")
        raise ValueError(f"{name} must be finite and {interval}, got {value}")
    return value


def choice(name: str, value: T, choices: Iterable[T]) -> T:
    """Return `value` if it is among `choices`; otherwise ValueError that names the nearest right one."""
    options = list(choices)
    if value not in options:
        raise ValueError(f"{name} must be one of {options}, got {value!r}{nearest(str(value), map(str, options))}")
    return value


def nearest(word: str, words: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the word closest to `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def finite(name: str, tensor: Tensor) -> Tensor:
    """Return `tensor` if all entries are finite; otherwise ValueError with the count and the first position."""
    if tensor.is_floating_point() and tensor.numel() and all(map(math.isfinite, map(float, tensor.detach().aminmax()))):
        return tensor  # one read, which a NaN passes through; the rest below is for the message
    bad = ~torch.isfinite(tensor)
    if bad.any():
        where = bad.nonzero()[0].tolist()
        raise ValueError(
            f"{name} has {int(bad.sum())} entries that are NaN or infinite (of {tensor.numel()}), "
            f"the first at {where}: {tensor[tuple(where)].item()}"
        )
    return tensor


def same_length(**tensors: Tensor | None) -> int:
    """Return the common first dimension of the tensors given (None is passed over); ValueError otherwise."""
    lengths = {name: tensor.shape[0] for name, tensor in tensors.items() if tensor is not None}
    if len(set(lengths.values())) != 1:
        raise ValueError(
            "these need the same first dimension: " + ", ".join(f"{k} has {v}" for k, v in lengths.items())
        )
    return next(iter(lengths.values()))


def _interval(low: float | int | None, high: float | int | None, left: str, right: str) -> str:
    if low is None and high is None:
        return "any value"
    if high is None:
        return f"{'>' if left == '(' else '>='} {low}"
    if low is None:
        return f"{'<' if right == ')' else '<='} {high}"
    return f"in {left}{low}, {high}{right}"
