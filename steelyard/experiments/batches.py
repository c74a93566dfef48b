"""Where a training run's batches come from: streams that never end, each with a seed of its own."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard import _check
from steelyard.bilevel.batch import Batch

__all__ = ["expanding", "group_balanced_subset", "sampled", "shuffled"]


def shuffled(data: Batch, size: int, seed: int) -> Iterator[Batch]:
    """Yield all of `data` for size 0 (or one as large), else batches without replacement, reshuffled each epoch."""
    if size == 0 or size >= len(data):
        while True:
            yield data
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(data), generator=generator).to(data.index.device)
        for start in range(0, len(data) - size + 1, size):  # an epoch's incomplete last batch is left out
            yield data.take(order[start : start + size])


def sampled(data: Batch, size: int, chance: Float[Tensor, " n"], seed: int) -> Iterator[Batch]:
    """Yield batches of `size` drawn with replacement, a sample with a probability in proportion to its `chance`."""
    _check.integer("size", size, low=1)
    generator = torch.Generator().manual_seed(seed)
    chance = chance.cpu()  # the generator is a CPU one: the same draws on every device
    while True:
        yield data.take(torch.multinomial(chance, size, True, generator=generator).to(data.index.device))


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
    data: Batch, first: Int[Tensor, " k"], size: int, *, warm_up: int, every: int, add: int, seed: int
) -> Iterator[Batch]:
    """Yield batches of a growing part of `data`: after `warm_up` batches, `add` more samples each `every` batches.

    Args:
        data: all samples.
        first: positions of those to start with.
        size: samples a batch, 0 for all of the part.
        warm_up: batches from the first part alone.
        every: batches between two additions; the first comes right after the warm-up.
        add: samples added each time, drawn uniformly from those left, until none are.
        seed: of the additions and the shuffles.
    """
    generator = torch.Generator().manual_seed(seed)
    left = torch.ones(len(data), dtype=torch.bool)
    left[first.cpu()] = False
    waiting = left.nonzero().flatten()
    waiting = waiting[torch.randperm(len(waiting), generator=generator)].to(first.device)
    part, epoch = first, 0
    for length in _stages(warm_up, every):
        stream = shuffled(data.take(part), size, seed + epoch)
        for _ in range(length):
            yield next(stream)
        part, waiting, epoch = torch.cat([part, waiting[:add]]), waiting[add:], epoch + 1


def _stages(first: int, then: int) -> Iterator[int]:
    yield first
    while True:
        yield then
