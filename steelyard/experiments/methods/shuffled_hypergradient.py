"""The sweep over samples that stay on disk, in an order of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from steelyard.bilevel import Batch, Outer, Streamed, Trajectory
from steelyard.experiments.training.batches import part
from steelyard.reweight.outer_risk import Estimator

__all__ = ["ShuffledHypergradient"]


@dataclass(frozen=True)
class ShuffledHypergradient:
    """An estimator that goes through all samples in a random order, the same at every call.

    A net that normalises by the batch is swept with the statistics of chunks. Files are often sorted by class, and
    chunks in their order would have one class each, whose statistics are no batch's.

    Attributes:
        estimator: of the hypergradient.
        seed: of the order.
    """

    estimator: Estimator
    seed: int

    def __call__(
        self, trajectory: Trajectory, outer: Outer, index: Tensor | None = None, samples: Batch | None = None
    ) -> Tensor:
        """Return d outer / d weight_i, aligned with `index` or `samples` as they were given."""
        if not isinstance(samples, Streamed):
            return self.estimator(trajectory, outer, index, samples)
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(self.seed)).to(samples.device)
        found = self.estimator(trajectory, outer, index, part(samples, order))
        return torch.empty_like(found).index_copy_(0, order, found)
