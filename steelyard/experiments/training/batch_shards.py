"""A batch of several processes: what one of them has of it, and what all must know of the whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import tee

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard.bilevel.batch import Batch
from steelyard.distributed import Ranks
from steelyard.experiments.training.batches import gathered
from steelyard.reweight.outer_risk import labels_of_all

__all__ = ["BatchShard", "batch_shards"]


@dataclass(frozen=True)
class BatchShard(Batch):
    """The samples of a batch that this rank has, maybe none.

    Attributes:
        whole: the batch of all ranks, without inputs.
        places: ``(whole,)`` where in `whole` the samples stand that the ranks have, one rank after the other.
        first: how many of `places` are those of earlier ranks.
        ranks: the processes.
    """

    whole: Batch = field(kw_only=True)
    places: Int[Tensor, " whole"] = field(kw_only=True)
    first: int = field(kw_only=True)
    ranks: Ranks = field(kw_only=True)

    def outputs_of_all(self, outputs: Float[Tensor, "b *outputs"]) -> Float[Tensor, "whole *outputs"]:
        """Return a model's outputs for `whole`, with a graph to this rank's `outputs` as `Ranks.join` has it."""
        together = self.ranks.join(outputs, self.first)
        return torch.empty_like(together).index_copy(0, self.places.to(together.device), together)


def batch_shards(
    data: Batch, rows: Iterator[Int[Tensor, " _"]], seed: int, first: int, ranks: Ranks
) -> Iterator[Batch]:
    """Yield this rank's `BatchShard` of each batch; alone the batches, see `batches.gathered`.

    Args:
        data: this rank's share of the samples.
        rows: positions in the samples of all ranks, the same on each.
        seed, first: see `gathered`.
        ranks: the processes.
    """
    if ranks.size == 1:
        yield from gathered(data, rows, seed, first)
        return
    labels = labels_of_all(data, ranks)
    ends = torch.tensor(ranks.lengths(len(data))).cumsum(0)
    start, stop = int(ends[ranks.rank]) - len(data), int(ends[ranks.rank])
    ahead, now = tee(positions.cpu() for positions in rows)
    mine = (positions[(positions >= start) & (positions < stop)] - start for positions in ahead)
    for own, positions in zip(gathered(data, mine, seed, first), now, strict=True):
        owner = torch.bucketize(positions, ends, right=True)
        yield BatchShard(
            own.inputs,
            own.targets,
            own.index,
            own.environment,
            own.group,
            whole=labels.take(positions),
            places=owner.argsort(stable=True),
            first=int((owner < ranks.rank).sum()),
            ranks=ranks,
        )
