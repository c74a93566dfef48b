"""Samples whose inputs are not in memory: labels are tensors, inputs come from a `DataLoader` a chunk at a time."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from steelyard._support import _check, _files, _nested
from steelyard._support._check import Numbers
from steelyard._support._nested import Nested
from steelyard._support._random import seed_of
from steelyard._support._workers import Asked, Loading
from steelyard.bilevel.batch import Batch, check_lengths, labels_as_tensors, row_positions
from steelyard.bilevel.dataset_items import Collate, ItemParts, Key, Labels, Rows

__all__ = ["MemoryMapped", "Streamed"]


@dataclass(frozen=True)
class Streamed(Batch):
    """Some samples of which targets, ids, environments and groups are in memory, and the inputs elsewhere.

    `inputs` says their shapes and holds nothing: tensors on torch's "meta" device, on which no model computes (of
    ragged inputs, shapes as of the first sample). The inputs come by `stream`, `at`, `chunks` and `take`, on the device
    of the labels. What takes a data set as a whole (`InnerRun` with a batch size, a sweep over all samples, an outer
    risk, `Maple`) takes one of these too, and holds one chunk of it at a time.

    Attributes:
        rows: ``(n,)`` where in their source these samples are.
        chunk: how many samples' inputs are in memory at once where nothing else says so.
        workers: processes that load ahead for `stream`, `at` and `chunks`; 0 loads in this one. They start with
            the first pass, stay for the next ones, and end with `close`. A script needs no guard for them, and a
            notebook may have them, too (for a data set of a class of its own, with the package cloudpickle). Samples,
            also augmented ones, are the same with any number of them: what a data set draws from the global generators
            of torch, NumPy and Python is decided by the seed of `stream` and the number of the batch.

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
        check_lengths(self, rows=self.rows)

    @staticmethod
    def of(  # type: ignore[override]
        dataset: Any,
        targets: Tensor | Numbers,
        *,
        environment: Tensor | Numbers | None = None,
        group: Tensor | Numbers | None = None,
        collate: Collate | None = None,
        chunk: int = 8192,
        workers: int = 0,
    ) -> Streamed:
        """Make a whole data set: ids 0 .. n-1 in the order of `dataset`. Labels beside the inputs: `of_dataset`.

        Args:
            dataset: a map-style `torch.utils.data.Dataset` of n items: item i is a tensor, the inputs of sample i, or a
                dict of tensors, the same at every reading. One with ``__getitems__(rows)`` (`MemoryMapped`, say) is
                asked for many at a time, and may answer with a tensor ``(rows, ...)``. With `workers` it is pickled.
            targets: ``(n, ...)``.
            environment: ``(n,)`` ids.
            group: ``(n,)`` ids.
            collate: makes the inputs of a batch of a list of items, such as sequences padded to the longest among them:
                a tensor, or a dict or tuple of tensors, with a row for each item. Losses may not depend on the padding.
                None: items are stacked, and must have one shape.
            chunk: see the class.
            workers: see the class.

        Raises:
            TypeError: an item that is neither a tensor nor a dict of tensors.
            ValueError: lengths differ.
        """
        return _of_rows(Rows(dataset, collate=collate), targets, environment, group, chunk, workers)

    @staticmethod
    def of_dataset(
        dataset: Any,
        target: Key | None = None,
        *,
        targets: Tensor | Numbers | None = None,
        inputs: Key | Sequence[Key] | None = None,
        environment: Key | Tensor | Numbers | None = None,
        group: Key | Tensor | Numbers | None = None,
        collate: Collate | None = None,
        chunk: int = 8192,
        workers: int = 0,
    ) -> Streamed:
        """Make a whole data set of items that hold their target: ``(x, y)``, or a dict.

        Labels are read at once, by one pass over all items, and inputs when they are asked for. With all samples in
        memory: ``Streamed.of_dataset(dataset).take(range(len(dataset)))``.

        Args:
            dataset: a map-style data set of n items, tuples or dicts of tensors, arrays or numbers; see `of`.
            target: where in an item the target is: the key in a dict, the position in a tuple (None: the last).
            targets: ``(n, ...)``, where they are known beforehand (``dataset.targets``, say), which saves the pass.
            inputs: what of an item is given to the model: one key (that entry is the input), or several (a dict of
                these, or a tuple); None: all that is not named by `target`, `environment` or `group`.
            environment, group: ids ``(n,)``, or the key or position of them in an item.
            collate: as in `of`, of a list of the items' inputs, without their labels.
            chunk, workers: see the class.

        Raises:
            TypeError: an item that is neither a tuple nor a dict, or holds something that no tensor can be made of.
            ValueError: an item without such a key.

        Example:
            >>> from torch.utils.data import TensorDataset
            >>> pairs = TensorDataset(torch.randn(6, 2), torch.tensor([0, 1, 0, 1, 0, 1]))
            >>> Streamed.of_dataset(pairs).targets.tolist()
            [0, 1, 0, 1, 0, 1]
            >>> table = [{"age": 20.0 + i, "pixels": torch.ones(3, 3), "label": i % 2} for i in range(4)]
            >>> Streamed.of_dataset(table, "label").take([2]).inputs["age"].tolist()
            [22.0]
        """
        named = {"environment": environment, "group": group}
        keys = {name: one for name, one in named.items() if isinstance(one, (str, int))}
        parts = ItemParts.of(dataset, target, inputs, keys)
        read = {**keys, **({"target": parts.target} if targets is None else {})}
        labels = _read_labels(Labels(dataset, read), chunk, workers) if read and len(dataset) else {}
        targets = labels.get("target", torch.empty(0)) if targets is None else targets
        ids: dict[str, Any] = {name: labels.get(name) if name in keys else one for name, one in named.items()}
        return _of_rows(Rows(dataset, parts, collate), targets, ids["environment"], ids["group"], chunk, workers)

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
        return replace(self._labels.take(chosen), inputs=self._gathered(self.rows[chosen.cpu()]))

    def close(self) -> None:
        """End the workers, if there are any; a later pass starts others.

        Without it they end when nothing refers to these samples (and to those made of them) any longer, or with the
        interpreter. In a ``with`` statement they end with it.
        """

    def __enter__(self) -> Streamed:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def to(self, device: torch.device | str) -> Streamed:
        """Return the same samples with the labels on `device`, where the inputs will come too."""
        labels = {name: getattr(self, name) for name in ("targets", "index", "environment", "group")}
        moved: dict[str, Any] = {name: one if one is None else one.to(device) for name, one in labels.items()}
        return replace(self, **moved)

    @abstractmethod
    def _load(
        self, rows: Iterator[Tensor], workers: int, training: bool = False, seed: int = 0, first: int = 0
    ) -> Iterator[Nested]:
        """Yield the inputs at each of `rows` of the source, in order."""

    def _gathered(self, rows: Tensor) -> Nested:
        """Return the inputs at `rows` ``(k,)`` of the source, read a chunk at a time into their places."""

        def empty(one: Tensor) -> Tensor:
            return torch.empty((len(rows), *one.shape[1:]), dtype=one.dtype, device=self.device)

        inputs = _nested.mapped(empty, self.inputs)
        if len(rows):
            start = 0
            for piece in self._load(iter(rows.split(self.chunk)), workers=0):
                read = _nested.named_tensors("inputs", piece)
                for (_, place), (_, one) in zip(_nested.named_tensors("inputs", inputs), read, strict=True):
                    place[start : start + len(one)] = one.to(self.device)
                start += len(read[0][1])
        return inputs

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
            yield replace(labels.take(waiting.popleft()), inputs=_nested.mapped(self._to_device, inputs))

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)


@dataclass(frozen=True)
class _OfDataset(Streamed):
    source: Rows = field(kw_only=True)
    loading: Loading = field(kw_only=True, repr=False, compare=False)

    def close(self) -> None:
        self.loading.close()

    def _load(
        self, rows: Iterator[Tensor], workers: int, training: bool = False, seed: int = 0, first: int = 0
    ) -> Iterator[Nested]:
        asked = _numbered(rows, seed, first) if training else _by_rows(rows)
        for piece in self.loading.answers(asked, ahead=workers > 0):
            self._check_kind(piece)
            yield piece

    def _gathered(self, rows: Tensor) -> Nested:
        if self.source.collate is None:
            return super()._gathered(rows)
        # How long the longest is says only the collate of all at once.
        (inputs,) = self._load(iter([rows]), workers=0)
        return _nested.mapped(self._to_device, inputs)

    def _check_kind(self, piece: Nested) -> None:
        """Raise ValueError if a piece is of another kind than item 0: nested or typed otherwise, or of other shapes."""
        read, known = (dict(_nested.named_tensors("inputs", one)) for one in (piece, self.inputs))
        if read.keys() != known.keys():
            raise ValueError(f"dataset gave {', '.join(read)}, where item 0 is {', '.join(known)}; all must be alike")
        for name, one in read.items():
            other = known[name]
            alike = one.ndim == other.ndim if self.source.collate is not None else one.shape[1:] == other.shape[1:]
            if not alike or one.dtype != other.dtype:
                raise ValueError(
                    f"dataset gave {name} of {one.dtype} {tuple(one.shape[1:])}, where item 0 is {other.dtype} "
                    f"{tuple(other.shape[1:])}; all must be alike to be put into one batch"
                )


def _of_rows(
    source: Rows,
    targets: Tensor | Numbers,
    environment: Tensor | Numbers | None,
    group: Tensor | Numbers | None,
    chunk: int,
    workers: int,
) -> Streamed:
    count = len(source.dataset)
    targets = _check.tensor("targets", targets)
    if count != len(targets):
        raise ValueError(f"targets has {len(targets)} entries, but dataset has {count} items; give one an item")
    first = source[torch.arange(1)] if count else torch.empty(0)

    def empty(one: Tensor) -> Tensor:
        return torch.empty((count, *one.shape[1:]), dtype=one.dtype, device="meta")

    workers = _check.integer("workers", workers, low=0)
    return _OfDataset(
        _nested.mapped(empty, first),
        targets,
        torch.arange(count, device=targets.device),
        environment,  # type: ignore[arg-type]  # they become tensors there
        group,  # type: ignore[arg-type]
        rows=torch.arange(count),
        chunk=_check.integer("chunk", chunk, low=1),
        workers=workers,
        source=source,
        loading=Loading(source, workers, __name__),
    )


def _read_labels(source: Labels, chunk: int, workers: int) -> dict[str, Tensor]:
    """Return the labels of all items ``(n, ...)`` by name, by one pass."""
    rows = iter(torch.arange(len(source.dataset)).split(_check.integer("chunk", chunk, low=1)))
    loading = Loading(source, _check.integer("workers", workers, low=0), __name__)
    pieces = list(loading.answers(_by_rows(rows)))
    loading.close()
    return {name: torch.cat([piece[name] for piece in pieces]) for name in source.keys}


def _numbered(rows: Iterator[Tensor], seed: int, first: int) -> Iterator[Asked]:
    """Yield what is asked for training: what a batch draws is decided by the seed of the pass and its own number."""
    for number, one in enumerate(rows, start=first):
        yield one.numpy(), seed_of(seed, number)


def _by_rows(rows: Iterator[Tensor]) -> Iterator[Asked]:
    """Yield what is asked for evaluation: what a piece draws is decided by its rows, so that it reads alike again."""
    for one in rows:
        yield one.numpy(), seed_of(crc32(one.numpy().tobytes()))


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
        # Mapped again at every reading: the pages read would otherwise count as memory of this process until it ends.
        return np.load(_files.regular(self.path), mmap_mode="r", allow_pickle=False)
