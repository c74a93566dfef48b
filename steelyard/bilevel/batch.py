"""The batch: samples that never lose their global ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from operator import itemgetter

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from steelyard._support import _check, _nested
from steelyard._support._check import Numbers
from steelyard._support._nested import Nested

__all__ = ["Batch", "joined"]


@dataclass(frozen=True)
class Batch:
    """Some samples: inputs, targets and their global ids; where known, environment and group.

    A whole in-memory data set is a `Batch` too. Arrays, lists and what pandas has are taken as by `torch.as_tensor`,
    ids of any integer type as int64. Columns of booleans that are no tensors (pandas', NumPy's) are labels and ids 0
    and 1.

    Attributes:
        inputs: ``(batch, ...)``; or a dict or a tuple, nested, of such tensors, each with the batch axis first: token
            ids and their masks, an image and a row of a table. A tensor is given to the model as ``model(x)``, a tuple
            as ``model(*x)``, a dict as ``model(**x)`` (`WeightedLoss` takes another ``call``).
        targets: ``(batch, ...)``, class indices ``(batch,)`` for classification; integers become int64, which torch's
            losses ask for (but bytes of more than one axis stay, as images have them).
        index: ``(batch,)`` int64, the global sample ids: the positions in the data set's weight vector.
        environment: ``(batch,)`` int64 environment ids, or None where unknown.
        group: ``(batch,)`` int64 group ids (label x attribute), or None where unknown.

    Raises:
        ValueError: the fields differ in length, `index` has a negative id, or ids are not ``(batch,)``.
        TypeError: a field that no tensor can be made of (of nested inputs, the place is named), ids that are no
            integers.

    Example:
        >>> data = Batch.of(torch.randn(6, 2), torch.tensor([0, 1, 0, 1, 0, 1]))
        >>> data.take(torch.tensor([4, 2])).index.tolist()
        [4, 2]
        >>> text = {"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": torch.ones(2, 3)}
        >>> Batch.of(text, torch.tensor([0, 1])).take([1]).inputs["attention_mask"].shape
        torch.Size([1, 3])
    """

    inputs: Nested
    targets: Shaped[Tensor, "batch *targets"]
    index: Int[Tensor, " batch"]
    environment: Int[Tensor, " batch"] | None = None
    group: Int[Tensor, " batch"] | None = None

    def __post_init__(self) -> None:
        _check.store(self, inputs=_nested_rows(self.inputs))
        labels_as_tensors(self)
        check_lengths(self)
        if len(self.index) and int(self.index.min()) < 0:
            raise ValueError(f"index holds global sample ids >= 0, got {int(self.index.min())}")

    @classmethod
    def of(
        cls,
        inputs: Nested,
        targets: Tensor | Numbers,
        *,
        environment: Tensor | Numbers | None = None,
        group: Tensor | Numbers | None = None,
    ) -> Batch:
        """Make a whole data set: ids 0 .. n-1 in the order given."""
        inputs = _nested_rows(inputs)
        (_, first), *_ = _nested.named_tensors("inputs", inputs)
        index = torch.arange(len(first), device=first.device)
        return cls(inputs, targets, index, environment, group)  # type: ignore[arg-type]  # they become tensors there

    def __len__(self) -> int:
        return self.index.shape[0]

    @property
    def device(self) -> torch.device:
        """Where a model finds the inputs."""
        return _nested.named_tensors("inputs", self.inputs)[0][1].device

    def take(self, positions: Tensor | Numbers) -> Batch:
        """Return the samples at `positions` ``(k,)`` of this batch (ids or a boolean mask), ids kept."""
        positions = row_positions(positions, len(self)).to(self.index.device)
        return self._map(lambda tensor: tensor[positions])

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch on `device`."""
        return self._map(lambda tensor: tensor.to(device))

    def chunks(self, size: int | None) -> Iterator[Batch]:
        """Yield the batch in pieces of at most `size` samples, in order (None: whole). Pieces are views."""
        if size is None or size >= len(self):
            yield self
            return
        for start in range(0, len(self), _check.integer("size", size, low=1)):
            yield self._map(itemgetter(slice(start, start + size)))

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        def maybe(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else function(tensor)

        return _trusted(
            inputs=_nested.mapped(function, self.inputs),
            targets=function(self.targets),
            index=function(self.index),
            environment=maybe(self.environment),
            group=maybe(self.group),
        )


def joined(batches: Sequence[Batch]) -> Batch:
    """Return the samples of all `batches`, one batch after the other; they have the same fields, nested alike."""

    def maybe(name: str) -> Tensor | None:
        found = [getattr(one, name) for one in batches]
        return None if any(one is None for one in found) else torch.cat(found)

    return _trusted(
        inputs=_nested.combined(lambda _, tensors: torch.cat(tensors), "inputs", [one.inputs for one in batches]),
        targets=torch.cat([one.targets for one in batches]),
        index=torch.cat([one.index for one in batches]),
        environment=maybe("environment"),
        group=maybe("group"),
    )


def _trusted(**values: Nested) -> Batch:
    """Return a batch of fields that come out of a valid one, all in the same way: nothing is looked at again.

    (A look at the ids of 128 samples takes as long as to gather them.)
    """
    batch = object.__new__(Batch)
    batch.__dict__.update(values)
    return batch


def labels_as_tensors(batch: Batch) -> None:
    """Make tensors of the targets and ids of a batch in the making; TypeError or ValueError where that cannot be."""
    _check.store(batch, targets=_as_labels(_rows("targets", _counted("targets", batch.targets))))
    _check.store(batch, index=_check.integers("index", batch.index))
    for name in ("environment", "group"):
        ids = getattr(batch, name)
        if ids is not None:
            _check.store(batch, **{name: _check.integers(name, _counted(name, ids))})


def check_lengths(batch: Batch, **more: Tensor) -> None:
    """Raise ValueError unless all fields of a batch (and `more`) have as many rows."""
    labels = {field.name: getattr(batch, field.name) for field in fields(Batch) if field.name != "inputs"}
    _check.same_length(**dict(_nested.named_tensors("inputs", batch.inputs)), **labels, **more)


def row_positions(positions: Tensor | Numbers, count: int) -> Tensor:
    """Return positions among `count` rows as int64 ``(k,)``, or a boolean mask of them as it is."""
    if isinstance(positions, Tensor) and positions.dtype == torch.int64 and positions.ndim == 1:
        return positions
    found = _check.tensor("positions", positions, ("k",))
    if found.dtype != torch.bool:
        return _check.integers("positions", positions)
    if len(found) != count:
        raise ValueError(f"positions is a mask of {len(found)} entries, but there are {count} samples")
    return found


def _counted(name: str, labels: Tensor | Numbers) -> Tensor | Numbers:
    """Return a column of booleans that is no tensor, as pandas and NumPy have them, as 0 and 1."""
    if isinstance(labels, Tensor) or not hasattr(labels, "__array__") or getattr(labels, "ndim", 0) != 1:
        return labels
    column = _check.tensor(name, labels)
    return column.long() if column.dtype == torch.bool else labels


def _as_labels(targets: Tensor) -> Tensor:
    whole = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    return targets.long() if whole and (targets.dtype != torch.uint8 or targets.ndim == 1) else targets


def _nested_rows(inputs: Nested) -> Nested:
    """Return inputs whose every tensor has rows; TypeError or ValueError, which name the place, where one has none."""
    return _rows("inputs", inputs) if isinstance(inputs, Tensor) else _nested.as_tensors("inputs", inputs, _rows)


def _rows(name: str, values: Tensor | Numbers) -> Tensor:
    """Return a tensor with rows; TypeError or ValueError if `values` is none and cannot be made one."""
    found = _check.tensor(name, values)
    if not found.ndim:
        raise ValueError(f"{name} must have a row for each sample, got a number, {found.item()}")
    return found
