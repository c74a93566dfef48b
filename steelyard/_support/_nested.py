"""Inputs of one tensor or of several: dicts and tuples (nested) of tensors, walked in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from steelyard._support import _check

__all__ = ["Nested", "as_tensors", "combined", "equal", "mapped", "named_tensors"]

Nested: TypeAlias = Any
"""A tensor, or a dict with strings as keys or a tuple, nested, of tensors."""


def mapped(function: Callable[[Tensor], Any], values: Nested) -> Any:
    """Return `values` with `function` of every tensor in its place.

    Example:
        >>> mapped(len, {"ids": torch.zeros(3, 2), "pair": (torch.zeros(3), torch.zeros(4))})
        {'ids': 3, 'pair': (3, 4)}
    """
    if isinstance(values, Tensor):
        return function(values)
    if isinstance(values, dict):
        return {key: mapped(function, one) for key, one in values.items()}
    return tuple(mapped(function, one) for one in values)


def named_tensors(name: str, values: Nested) -> list[tuple[str, Tensor]]:
    """Return the tensors, in order, each with what to call it.

    Example:
        >>> row = torch.zeros(1)
        >>> [name for name, _ in named_tensors("inputs", {"ids": row, "pair": (row, row)})]
        ["inputs['ids']", "inputs['pair'][0]", "inputs['pair'][1]"]
    """
    if isinstance(values, Tensor):
        return [(name, values)]
    pairs = values.items() if isinstance(values, dict) else enumerate(values)
    return [leaf for key, one in pairs for leaf in named_tensors(f"{name}[{key!r}]", one)]


def combined(function: Callable[[str, list[Tensor]], Tensor], name: str, several: Sequence[Nested]) -> Nested:
    """Return `function` of the name and the tensors that stand in the same place of each of `several`.

    Raises:
        ValueError: they are not nested alike.

    Example:
        >>> combined(lambda name, rows: torch.stack(rows), "x", [{"a": torch.tensor(1)}, {"a": torch.tensor(2)}])
        {'a': tensor([1, 2])}
    """
    first = several[0]
    if isinstance(first, Tensor):
        other = next((one for one in several if not isinstance(one, Tensor)), first)
        if other is not first:
            raise ValueError(f"{name} is a tensor in one sample and {_keys(other)} in another; give all the same")
        return function(name, list(several))
    keys = list(first) if isinstance(first, dict) else range(len(first))
    for one in several:
        if type(one) is not type(first) or len(one) != len(first) or (isinstance(one, dict) and set(one) != set(first)):
            raise ValueError(f"{name} is {_keys(first)} in one sample and {_keys(one)} in another; give all the same")
    found = {key: combined(function, f"{name}[{key!r}]", [one[key] for one in several]) for key in keys}
    return found if isinstance(first, dict) else tuple(found.values())


def equal(one: Nested, other: Nested) -> bool:
    """Whether both are nested alike and hold the same tensors, entry by entry."""
    pairs = named_tensors("", one), named_tensors("", other)
    return [name for name, _ in pairs[0]] == [name for name, _ in pairs[1]] and all(
        torch.equal(left, right) for (_, left), (_, right) in zip(*pairs, strict=True)
    )


def as_tensors(
    name: str, values: Any, leaf: Callable[[str, Any], Tensor] = _check.tensor, scalars: bool = False
) -> Nested:
    """Return mappings as dicts, tuples of arrays as tuples, and all else by `leaf`, as one tensor.

    A tuple of numbers, or of lists of them, is one tensor, as for `torch.as_tensor`. With `scalars` one of tensors
    without dimensions stays a tuple: of the inputs of one sample, where no axis counts samples.

    Raises:
        TypeError: a key that is no string, or something that no tensor can be made of, named by its place.
        ValueError: nothing is in it.
    """
    if isinstance(values, Tensor):
        return leaf(name, values)
    if isinstance(values, Mapping):
        if not values:
            raise ValueError(f"{name} is an empty dict: it must hold at least one tensor")
        for key in values:
            _check.instance(f"a key of {name}", key, str, "a string, the name of an argument of the model")
        return {key: as_tensors(f"{name}[{key!r}]", one, leaf, scalars) for key, one in values.items()}
    if isinstance(values, tuple) and any(_holds_arrays(one, scalars) for one in values):
        return tuple(as_tensors(f"{name}[{place}]", one, leaf, scalars) for place, one in enumerate(values))
    return leaf(name, values)


def _holds_arrays(value: Any, scalars: bool) -> bool:
    if isinstance(value, tuple):
        return any(_holds_arrays(one, scalars) for one in value)
    if isinstance(value, Mapping) or (scalars and isinstance(value, Tensor)):
        return True
    return hasattr(value, "__array__") and getattr(value, "ndim", 0) > 0


def _keys(values: Nested) -> str:
    if isinstance(values, dict):
        return f"a dict of {', '.join(map(repr, sorted(values)))}"
    return f"a tuple of {len(values)}" if isinstance(values, tuple) else "a tensor"
