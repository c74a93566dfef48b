"""Which samples a training run's steps are taken on: streams of positions that never end, each with a seed of its own.

Positions, not samples: a run that is resumed passes over what was done without gathering any of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.streamed import Streamed

__all__ = ["Gather", "expanding", "gathered", "group_balanced_subset", "part", "sampled", "shuffled"]


class Gather:
    """Gathers `data` at positions ``(b,)``.

    The positions of all samples in their order give `data` itself, and the tensor of the call before gives the batch of
    the call before: a stream of whole batches copies the samples once, or not at all.
    """

    def __init__(self, data: Batch) -> None:
        self.data = data
        self._last: tuple[Tensor, Batch] | None = None

    def __call__(self, rows: Int[Tensor, " b"]) -> Batch:
        """Return the samples at `rows`."""
        if self._last is None or self._last[0] is not rows:
            count = len(self.data)
            whole = len(rows) == count and torch.equal(rows.cpu(), torch.arange(count))
            self._last = (rows, self.data if whole else self.data.take(rows))
        return self._last[1]


def part(data: Streamed, positions: Int[Tensor, " k"]) -> Streamed:
    """Return the samples of `data` at `positions`, which stay where they are."""
    positions = positions.to(data.device)
    labels = {name: getattr(data, name) for name in ("targets", "index", "environment", "group")}
    taken: dict[str, Any] = {name: None if label is None else label[positions] for name, label in labels.items()}
    inputs = data.inputs.new_empty(len(positions), *data.inputs.shape[1:])
    return replace(data, inputs=inputs, rows=data.rows[positions.cpu()], **taken)


def gathered(data: Batch, rows: Iterator[Int[Tensor, " _"]], seed: int, first: int = 0) -> Iterator[Batch]:
    """Yield the samples of `data` at each of `rows`; inputs that stay on disk are loaded ahead.

    Args:
        data: the samples.
        rows: positions, a tensor for each batch.
        seed: of the augmentation of images; others have none.
        first: the number of the first batch in the run, for one that goes on where another stopped.
    """
    return data.stream(rows, seed, first) if isinstance(data, Streamed) else map(Gather(data), rows)


def shuffled(positions: Int[Tensor, " n"], size: int, seed: int) -> Iterator[Int[Tensor, " b"]]:
    """Yield all `positions` for size 0 (or one as large), else parts of `size` of them, reshuffled each epoch."""
    if size == 0 or size >= len(positions):
        while True:
            yield positions
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(positions), generator=generator).to(positions.device)
        for start in range(0, len(positions) - size + 1, size):  # an epoch's incomplete last batch is left out
            yield positions[order[start : start + size]]


def sampled(size: int, chance: Float[Tensor, " n"], seed: int) -> Iterator[Int[Tensor, " b"]]:
    """Yield `size` positions drawn with replacement, each with a probability in proportion to its `chance`."""
    _check.integer("size", size, low=1)
    generator = torch.Generator().manual_seed(seed)
    device, chance = chance.device, chance.cpu()  # the generator is a CPU one: the same draws on every device
    while True:
        yield torch.multinomial(chance, size, True, generator=generator).to(device)


def group_balanced_subset(groups: Int[Tensor, " n"], generator: torch.Generator) -> Int[Tensor, " k"]:
    """Return positions of a random subset with as many samples of each group as the smallest group has.

    Example:
        >>> chosen = group_balanced_subset(torch.tensor([0, 0, 0, 1, 1]), torch.Generator().manual_seed(0))
        >>> torch.tensor([0, 0, 0, 1, 1])[chosen].tolist()
        [0, 0, 1, 1]
    """
    ids, counts = torch.unique(groups, return_counts=True)
    members = [torch.nonzero(groups == g).flatten() for g in ids]
    keep = int(counts.min())
    return torch.cat([m[torch.randperm(len(m), generator=generator).to(m.device)[:keep]] for m in members])


def expanding(
    count: int, first: Int[Tensor, " k"], size: int, *, warm_up: int, every: int, add: int, seed: int
) -> Iterator[Int[Tensor, " b"]]:
    """Yield positions from a growing part of `count`: after `warm_up` batches, `add` more samples each `every` batches.

    Args:
        count: all samples.
        first: positions of those to start with.
        size: samples a batch, 0 for all of the part.
        warm_up: batches from the first part alone.
        every: batches between two additions; the first comes right after the warm-up.
        add: samples added each time, drawn uniformly from those left, until none are.
        seed: of the additions and the shuffles.
    """
    generator = torch.Generator().manual_seed(seed)
    left = torch.ones(count, dtype=torch.bool)
    left[first.cpu()] = False
    waiting = left.nonzero().flatten()
    waiting = waiting[torch.randperm(len(waiting), generator=generator)].to(first.device)
    part, epoch = first, 0
    for length in _stages(warm_up, every):
        stream = shuffled(part, size, seed + epoch)
        for _ in range(length):
            yield next(stream)
        part, waiting, epoch = torch.cat([part, waiting[:add]]), waiting[add:], epoch + 1


def _stages(first: int, then: int) -> Iterator[int]:
    yield first
    while True:
        yield then
