"""Samples whose inputs are not in memory: labels are tensors, inputs come from a `DataLoader` a chunk at a time."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from steelyard._support import _check, _files
from steelyard._support._check import Numbers
from steelyard._support._workers import worker_context
from steelyard.bilevel.batch import Batch, labels_as_tensors, row_positions

__all__ = ["MemoryMapped", "Streamed"]


@dataclass(frozen=True)
class Streamed(Batch):
    """Some samples of which targets, ids, environments and groups are in memory, and the inputs elsewhere.

    `inputs` says their shape and holds nothing: a tensor on torch's "meta" device, on which no model computes. The
    inputs come by `stream`, `at`, `chunks` and `take`, on the device of the labels. What takes a data set as a whole
    (`InnerRun` with a batch size, a sweep over all samples, an outer risk, `Maple`) takes one of these too, and holds
    one chunk of it at a time.

    Attributes:
        rows: ``(n,)`` where in their source these samples are.
        chunk: how many samples' inputs are in memory at once where nothing else says so.
        workers: processes that load ahead for `stream`, `at` and `chunks`; 0 loads in this one.

    Example:
        >>> features = torch.randn(6, 2)
        >>> data = Streamed.of([*features], torch.tensor([0, 1, 0, 1, 0, 1]))
        >>> torch.equal(data.take(torch.tensor([4, 2])).inputs, features[[4, 2]])
        True
    """

    rows: Int[Tensor, " n"] = field(kw_only=True)
    chunk: int = field(kw_only=True)
    workers: int = field(kw_only=True)

    def __post_init__(self) -> None:
        labels_as_tensors(self)
        _check.same_length(rows=self.rows, **{one.name: getattr(self, one.name) for one in fields(Batch)})

    @staticmethod
    def of(  # type: ignore[override]
        dataset: Any,
        targets: Tensor | Numbers,
        *,
        environment: Tensor | Numbers | None = None,
        group: Tensor | Numbers | None = None,
        chunk: int = 8192,
        workers: int = 0,
    ) -> Streamed:
        """Make a whole data set: ids 0 .. n-1 in the order of `dataset`.

        Args:
            dataset: a map-style `torch.utils.data.Dataset` of n items: item i is a tensor, the inputs of sample i, the
                same at every reading. One with ``__getitems__(rows)`` (`MemoryMapped`, say) is asked for many at a
                time, and may answer with a tensor ``(rows, ...)``. With `workers` it is pickled.
            targets: ``(n, ...)``.
            environment: ``(n,)`` ids.
            group: ``(n,)`` ids.
            chunk: see the class.
            workers: see the class. A script that asks for any needs the guard ``if __name__ == "__main__":``.

        Raises:
            TypeError: an item that is not a tensor.
            ValueError: lengths differ.
        """
        count = len(dataset)
        targets = _check.tensor("targets", targets)
        if count != len(targets):
            raise ValueError(f"targets has {len(targets)} entries, but dataset has {count} items; give one an item")
        first = _Rows(dataset)[torch.arange(min(1, count))] if count else torch.empty(0)
        index = torch.arange(count, device=targets.device)
        return _OfDataset(
            torch.empty((count, *first.shape[1:]), dtype=first.dtype, device="meta"),
            targets,
            index,
            environment,  # type: ignore[arg-type]  # they become tensors there
            group,  # type: ignore[arg-type]
            rows=torch.arange(count),
            chunk=_check.integer("chunk", chunk, low=1),
            workers=_check.integer("workers", workers, low=0),
            dataset=dataset,
        )

    @property
    def device(self) -> torch.device:
        """Where the inputs come to: where the labels are."""
        return self.index.device

    def stream(self, positions: Iterator[Int[Tensor, " _"]], seed: int = 0, first: int = 0) -> Iterator[Batch]:
        """Yield the samples at each of `positions` as training sees them, loaded ahead by the workers.

        Args:
            positions: of each batch; may be endless.
            seed: of the augmentation, for those samples that have one.
            first: the number of the first batch in the run, for one that goes on where another stopped.
        """
        return self._batches(positions, self.workers, training=True, seed=seed, first=first)

    def at(self, positions: Iterator[Int[Tensor, " _"]]) -> Iterator[Batch]:
        """Yield the samples at each of `positions` as evaluation sees them, loaded ahead by the workers."""
        return self._batches(positions, self.workers)

    def chunks(self, size: int | None) -> Iterator[Batch]:
        """Yield the samples in order, as evaluation sees them, in pieces of at most `size` (and at most `chunk`)."""
        return self.at(iter(torch.arange(len(self)).split(min(size or self.chunk, self.chunk))))

    def take(self, positions: Tensor | Numbers) -> Batch:
        """Return the samples at `positions` (ids or a mask) with their inputs in memory, as evaluation sees them."""
        positions = row_positions(positions, len(self))
        chosen = positions.nonzero().flatten() if positions.dtype == torch.bool else positions
        inputs = torch.empty((len(chosen), *self.inputs.shape[1:]), dtype=self.inputs.dtype, device=self.device)
        places = inputs.split(self.chunk) if len(chosen) else ()
        pieces = self._load(iter(self.rows[chosen.cpu()].split(self.chunk)), workers=0)
        for place, piece in zip(places, pieces, strict=False):
            place.copy_(piece)
        return replace(self._labels.take(chosen), inputs=inputs)

    def to(self, device: torch.device | str) -> Streamed:
        """Return the same samples with the labels on `device`, where the inputs will come too."""
        labels = {name: getattr(self, name) for name in ("targets", "index", "environment", "group")}
        moved: dict[str, Any] = {name: one if one is None else one.to(device) for name, one in labels.items()}
        return replace(self, **moved)

    @abstractmethod
    def _load(
        self, rows: Iterator[Tensor], workers: int, training: bool = False, seed: int = 0, first: int = 0
    ) -> Iterator[Tensor]:
        """Yield the inputs at each of `rows` of the source, in order."""

    @cached_property  # a new batch looks at all of its ids
    def _labels(self) -> Batch:
        return Batch(self.index, self.targets, self.index, self.environment, self.group)

    def _batches(self, positions: Iterator[Tensor], workers: int, **training: Any) -> Iterator[Batch]:
        labels = self._labels
        waiting: deque[Tensor] = deque()  # the positions that the workers are ahead by

        def rows() -> Iterator[Tensor]:
            for at in positions:
                waiting.append(at)
                yield self.rows[at.cpu()]

        for inputs in self._load(rows(), workers, **training):
            yield replace(labels.take(waiting.popleft()), inputs=inputs.to(self.device))


@dataclass(frozen=True)
class _OfDataset(Streamed):
    dataset: Any = field(kw_only=True)

    def _load(
        self, rows: Iterator[Tensor], workers: int, training: bool = False, seed: int = 0, first: int = 0
    ) -> Iterator[Tensor]:
        loader = DataLoader(
            _Rows(self.dataset),
            batch_size=None,
            sampler=_Once(rows),
            num_workers=workers,
            generator=torch.Generator().manual_seed(0),  # without one, the loader draws from the global one
            multiprocessing_context=worker_context(__name__) if workers else None,
        )
        for found in loader:
            if found.shape[1:] != self.inputs.shape[1:] or found.dtype != self.inputs.dtype:
                raise ValueError(
                    f"dataset gave inputs of {found.dtype} {tuple(found.shape[1:])}, where item 0 is "
                    f"{self.inputs.dtype} {tuple(self.inputs.shape[1:])}; all must be alike to be put into one batch"
                )
            yield found


@dataclass(frozen=True)
class _Once:
    """A sampler of the rows of each batch."""

    rows: Iterator[Tensor]

    def __iter__(self) -> Iterator[Tensor]:
        return self.rows


@dataclass(frozen=True)
class _Rows(Dataset[Tensor]):
    """Item `rows` ``(k,)`` is the inputs of these items of a data set ``(k, ...)``."""

    dataset: Any

    def __getitem__(self, rows: Tensor) -> Tensor:
        wanted = rows.tolist()
        if not wanted and len(self.dataset):  # a rank that has nothing of a batch
            return self[torch.zeros(1, dtype=torch.long)][:0]
        many = getattr(self.dataset, "__getitems__", None)
        found = [self.dataset[row] for row in wanted] if many is None else many(wanted)
        if isinstance(found, Tensor):
            return found
        other = next((one for one in found if not isinstance(one, Tensor)), None)
        if other is not None:
            raise TypeError(
                f"an item of dataset must be a tensor, the inputs of a sample, got {type(other).__name__}; wrap the "
                "data set so that it gives the inputs alone, and give the targets to Streamed.of"
            )
        return torch.stack(list(found))


class MemoryMapped(Dataset[Tensor]):
    """The rows of a ``.npy`` file as a map-style data set, read when they are asked for. It pickles by its path.

    Args:
        path: of an array ``(n, ...)`` of numbers, as `numpy.save` and `numpy.lib.format.open_memmap` write it.
        dtype: of the tensors; None: that of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file; one of Python objects is not unpickled.
    """

    def __init__(self, path: str | os.PathLike[str], dtype: torch.dtype | None = None) -> None:
        self.path, self.dtype = os.fspath(path), dtype
        if not self._array().ndim:
            raise ValueError(f"{self.path} holds a single number, not an array with a row for every sample")

    def __len__(self) -> int:
        return len(self._array())

    def __getitem__(self, row: int) -> Tensor:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> Tensor:
        """Return the rows ``(k, ...)``."""
        found = torch.from_numpy(self._array()[np.asarray(rows, dtype=np.int64)])
        return found if self.dtype is None else found.to(self.dtype)

    def _array(self) -> Any:
        # Mapped anew at every reading: the pages read would otherwise count as memory of this process until it ends.
        return np.load(_files.regular(self.path), mmap_mode="r", allow_pickle=False)
