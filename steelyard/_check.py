"""Argument checks with one wording: the argument, the value, what would be right.

Every check returns its value, so that it can stand in an assignment.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

__all__ = [
    "boolean",
    "choice",
    "distinct",
    "entries_in",
    "finite",
    "floats",
    "function",
    "generator",
    "in_range",
    "instance",
    "integer",
    "integers",
    "nearest",
    "same_length",
    "seed",
    "tensor",
]

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
    if isinstance(value, bool) or not isinstance(value, (int, float, numbers.Real)):  # NumPy's are of the last kind
        raise TypeError(f"{name} must be a real number, got {value!r} ({type(value).__name__})")
    below = low is not None and (value <= low if open_low else value < low)
    above = high is not None and (value >= high if open_high else value > high)
    if not math.isfinite(value) or below or above:
        interval = _interval(low, high, "(" if open_low else "[", ")" if open_high else "]")
        raise ValueError(f"{name} must be finite{' and ' if interval else ''}{interval}, got {value}")
    return value


def seed(name: str, value: int) -> int:
    """Return `value` if it is an int that seeds a `torch.Generator`, with room to count up; as `integer` otherwise."""
    return integer(name, value, low=0, high=2**63 - 1)


def boolean(name: str, value: bool) -> bool:
    """Return `value` if it is True or False; TypeError otherwise."""
    return instance(name, value, bool, "True or False")


def instance(name: str, value: T, kind: type | tuple[type, ...], what: str) -> T:
    """Return `value` if it is of `kind`; otherwise TypeError, which says `what` it must be."""
    # Of a class the instances can be called; so can it, but in another way.
    if not isinstance(value, kind) or (isinstance(value, type) and kind is not Callable):
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
        raise TypeError(f"{name} must be {what}, got {shown} ({type(value).__name__})")
    return value


def function(name: str, value: T, what: str) -> T:
    """Return `value` if it can be called; otherwise TypeError, which says `what` it must be."""
    return instance(name, value, Callable, what)  # type: ignore[arg-type]


def generator(name: str, value: torch.Generator) -> torch.Generator:
    """Return `value` if it is a `torch.Generator`; otherwise TypeError, which says how to make one."""
    return instance(name, value, torch.Generator, "a torch.Generator, such as torch.Generator().manual_seed(0)")


def tensor(name: str, value: Tensor, dims: tuple[str, ...] | None = None) -> Tensor:
    """Return `value` if it is a tensor, with dimensions of these names where any are given; else TypeError, ValueError.

    Args:
        name: of the argument.
        value: what was given.
        dims: the names of its dimensions, as many as it must have.
    """
    instance(name, value, Tensor, "a tensor")
    if dims is not None and value.ndim != len(dims):
        raise ValueError(f"{name} must have the shape ({', '.join(dims)}), got {tuple(value.shape)}")
    return value


def integers(name: str, value: Tensor) -> Tensor:
    """Return `value` if it is a `tensor` of integers ``(n,)``; TypeError or ValueError otherwise."""
    if tensor(name, value, ("n",)).is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must hold integers, got {value.dtype}; convert it with .long()")
    return value


def floats(name: str, value: Tensor, dims: tuple[str, ...] | None = None) -> Tensor:
    """Return `value` if it is a floating-point `tensor`; TypeError or ValueError otherwise."""
    if not tensor(name, value, dims).is_floating_point():
        raise TypeError(f"{name} must be floating point, got {value.dtype}; convert it with .float()")
    return value


def distinct(ids: Tensor) -> int:
    """Return how many different ids there are. (Sorting them takes a multiple of their memory, and they mostly are.)"""
    ordered = bool((ids[1:] > ids[:-1]).all())
    return len(ids) if ordered else len(torch.unique(ids))


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


def entries_in(name: str, values: Tensor, low: float | int, high: float | int, remedy: str = "") -> Tensor:
    """Return `values` if all entries are in [low, high]; otherwise ValueError with their count and the first."""
    bad = ~((values >= low) & (values <= high))  # true for NaN too
    if bad.any():
        raise ValueError(
            f"{name} must be in [{low:g}, {high:g}]; {int(bad.sum())} of {bad.numel()} are not, the first "
            f"{values[bad][0].item()}{remedy}"
        )
    return values


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
        return ""
    if high is None:
        return f"{'>' if left == '(' else '>='} {low}"
    if low is None:
        return f"{'<' if right == ')' else '<='} {high}"
    return f"in {left}{low}, {high}{right}"
