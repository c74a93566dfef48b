"""What an item of a map-style data set holds: the inputs of a sample, and perhaps its target, environment and group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from steelyard._support import _check, _nested
from steelyard._support._nested import Nested

__all__ = ["Collate", "ItemParts", "Key", "Labels", "Rows"]

Key: TypeAlias = str | int
"""Where in an item something is: the key of a dict, the position in a tuple."""

Collate: TypeAlias = Callable[[list[Any]], Nested]
"""From the inputs of several samples to those of a batch: tensors with a row for each."""


@dataclass(frozen=True)
class ItemParts:
    """Which entries of an item are the inputs of a sample.

    Attributes:
        target: where its target is.
        inputs: where its inputs are; None: all but the target and `others`.
        others: where ids of its environment and group are.
    """

    target: Key
    inputs: Key | tuple[Key, ...] | None
    others: tuple[Key, ...]

    @classmethod
    def of(
        cls, dataset: Any, target: Key | None, inputs: Key | Sequence[Key] | None, others: Mapping[str, Key]
    ) -> ItemParts:
        """Return the parts by checked keys of item 0; a position counts from the front."""
        several = None if inputs is None or isinstance(inputs, (str, int)) else tuple(inputs)
        if not len(dataset):
            return cls(-1 if target is None else target, inputs if several is None else several, ())  # type: ignore[arg-type]
        keys = _keys(dataset[0])
        if target is None:
            if isinstance(keys[0], str):
                raise TypeError(
                    f"an item of dataset is a dict of {', '.join(map(repr, keys))}: say which of them is the target, "
                    "Streamed.of_dataset(dataset, target=...)"
                )
            target = -1
        found = {name: _key(name, one, keys) for name, one in {"target": target, **others}.items()}
        wanted = several if several is not None else () if inputs is None else (inputs,)
        checked = tuple(_key("inputs", one, keys) for one in wanted)  # type: ignore[arg-type]
        chosen = checked if several is not None else None if inputs is None else checked[0]
        return cls(found.pop("target"), chosen, tuple(found.values()))

    def inputs_of(self, item: Any) -> Any:
        """Return the inputs of an item: one entry, or a dict or tuple of several."""
        if isinstance(self.inputs, (str, int)):
            return item[self.inputs]
        apart = {self.target, *self.others}
        keys = [key for key in _keys(item) if key not in apart] if self.inputs is None else list(self.inputs)
        if isinstance(item, Mapping):
            return {key: item[key] for key in keys}
        return item[keys[0]] if len(keys) == 1 and self.inputs is None else _Several(item[key] for key in keys)


class _Several(tuple[Any, ...]):
    """Entries of an item that are inputs each by itself, numbers too; a tuple of numbers is one input."""


@dataclass(frozen=True)
class Rows(Dataset[Nested]):
    """Item `rows` ``(k,)`` is the inputs of these items of a data set, with `k` rows.

    Attributes:
        dataset: the data set.
        parts: what of an item is the inputs; None: all of it.
        collate: makes one of several; None: they are stacked.
    """

    dataset: Any
    parts: ItemParts | None = None
    collate: Collate | None = None

    def __getitem__(self, rows: Tensor | np.ndarray) -> Nested:
        wanted = rows.tolist()
        if not wanted and len(self.dataset):  # a rank that has nothing of a batch
            return _nested.mapped(lambda one: one[:0], self[torch.zeros(1, dtype=torch.long)])
        items = _items(self.dataset, wanted)
        if self.parts is not None:
            items = [self.parts.inputs_of(item) for item in items]
        if self.collate is not None:
            return _collated(self.collate, list(items))
        if isinstance(items, Tensor):
            return items
        return stacked("inputs", [_inputs(item, self.parts is None) for item in items])


@dataclass(frozen=True)
class Labels(Dataset[dict[str, Tensor]]):
    """Item `rows` ``(k,)`` is the labels of these items of a data set, by name ``(k, ...)``.

    Attributes:
        dataset: the data set.
        keys: where in an item they are, by name.
    """

    dataset: Any
    keys: dict[str, Key]

    def __getitem__(self, rows: Tensor | np.ndarray) -> dict[str, Tensor]:
        items = _items(self.dataset, rows.tolist())
        return {name: stacked(name, [_entry(name, one[key]) for one in items]) for name, key in self.keys.items()}


def stacked(name: str, several: list[Nested]) -> Nested:
    """Return one for all samples: tensors that stand in the same place, one after the other ``(k, ...)``.

    Raises:
        ValueError: they are nested otherwise, or differ in shape.
    """

    def stack(place: str, tensors: list[Tensor]) -> Tensor:
        other = next((one for one in tensors if one.shape != tensors[0].shape), None)
        if other is not None:
            raise ValueError(
                f"dataset gave {place} of {tensors[0].dtype} {tuple(tensors[0].shape)} and {tuple(other.shape)} in one "
                "batch: pad them to one shape, by collate= of Streamed.of or Streamed.of_dataset, say"
            )
        return torch.stack(tensors)

    return _nested.combined(stack, name, several)


def _collated(collate: Collate, items: list[Any]) -> Nested:
    inputs = _nested.as_tensors("inputs", collate(items))
    for name, one in _nested.named_tensors(f"the {len(items)} items' inputs", inputs):
        if one.shape[:1] != (len(items),):
            raise ValueError(f"collate gave {name} of shape {tuple(one.shape)}: it must give a row for each item")
    return inputs


def _items(dataset: Any, rows: list[int]) -> Any:
    many = getattr(dataset, "__getitems__", None)
    return [dataset[row] for row in rows] if many is None else many(rows)


def _inputs(item: Any, alone: bool) -> Nested:
    """Return an item (or, not `alone`, what was chosen of one) as tensors."""
    if alone and not isinstance(item, (Tensor, Mapping)):
        raise TypeError(
            f"an item of dataset must be a tensor, the inputs of a sample, got {type(item).__name__}: a dict of "
            "tensors does, too, and Streamed.of_dataset(dataset) takes items that hold their target, such as (x, y)"
        )
    if isinstance(item, _Several):
        return tuple(_nested.as_tensors(f"inputs[{place}]", one, _entry, True) for place, one in enumerate(item))
    return _nested.as_tensors("inputs", item, _entry, scalars=True)


def _entry(name: str, value: Any) -> Tensor:
    """Return one entry of an item, which may be a number, as a tensor."""
    if isinstance(value, np.bool_):
        value = bool(value)  # which torch 2.6 takes for an index, and NumPy warns
    return torch.as_tensor(value) if isinstance(value, Number) else _check.tensor(name, value)


def _keys(item: Any) -> list[Key]:
    if isinstance(item, Mapping):
        return list(item)
    if isinstance(item, (tuple, list)) and item:
        return list(range(len(item)))
    raise TypeError(
        f"an item of dataset must be a tuple or a dict that holds the target, got {_check.shown(item)}: "
        "Streamed.of(dataset, targets) takes items that are inputs alone"
    )


def _key(name: str, key: Key, keys: list[Key]) -> Key:
    """Return a key of an item, a position counted from the front; ValueError if an item has none such."""
    if isinstance(key, int) and isinstance(keys[0], int) and -len(keys) <= key < 0:
        return key + len(keys)
    return _check.choice(name, key, keys)
