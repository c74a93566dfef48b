"""What the methods share that train in minibatches: their order, the loss a row, and whose fault a NaN is."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

import numpy
import torch
from torch import Tensor

from steelyard._support._finite import broken_samples
from steelyard.bilevel import Batch, Streamed, WeightedLoss

__all__ = ["blamed", "block_positions", "blocks", "divided_by_rows", "shuffled", "taken"]


def divided_by_rows(objective: WeightedLoss) -> WeightedLoss:
    """Return the same loss with the number of rows as divisor."""
    found = copy.copy(objective)
    found.normalise = "batch"
    return found


def blamed(batch: Batch, clean: Batch) -> str:
    """Return which samples of the two are NaN or infinite, and what to do."""
    for name, data in (("the batch", batch), ("clean", clean)):
        if said := broken_samples([(data.inputs, data.targets, data.index)]):
            return f"NaN or infinite in {name}: {said}; mend these samples or leave them out"
    return "all inputs and targets are finite: the training has diverged; lower the learning rate"


def shuffled(count: int, size: int, seed: int, epoch: int, first: int) -> Iterator[Tensor]:
    """Yield positions among `count` samples, batch by batch without end, from batch `first` of `epoch` on."""
    while True:
        yield from _permutation(count, seed, epoch).split(size)[first:]
        epoch, first = epoch + 1, 0


def block_positions(count: int, size: int, seed: int) -> tuple[Tensor, ...]:
    """Return the positions of each block of `size` among `count` samples, by chance; the last may be smaller."""
    return _permutation(count, seed, 0).split(size)


def blocks(count: int, size: int, seed: int, first: int) -> Iterator[Tensor]:
    """Yield positions among `count` samples: the same blocks of `size` in every epoch, in an order of its own.

    Args:
        count: samples; the last block may be smaller.
        size: of a block.
        seed: of the blocks and of their orders.
        first: how many batches there were before.
    """
    found = block_positions(count, size, seed)
    for order in shuffled(len(found), 1, seed, 1 + first // len(found), first % len(found)):
        yield found[int(order)]


def taken(samples: Batch, positions: Iterable[Tensor], seed: int, first: int) -> Iterator[Batch]:
    """Yield the batches at these positions; of a `Streamed` they are read ahead, `first` its batches before."""
    if isinstance(samples, Streamed):
        yield from samples.stream(iter(positions), seed=seed, first=first)
        return
    for rows in positions:
        yield samples.take(rows)


def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    number = int(numpy.random.SeedSequence((seed, epoch)).generate_state(1)[0])
    return torch.randperm(count, generator=torch.Generator().manual_seed(number))
