"""One weight for many samples: of a source, a domain, a class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.bilevel import Outer, Trajectory
from steelyard.distributed import ALONE, Ranks
from steelyard.reweight.outer_risk import Estimator

__all__ = ["Shared"]


@dataclass(frozen=True, eq=False)
class Shared:
    """Which weight each sample has, where all samples of a source share one.

    In a loop of one's own, with a weight for each of three sources::

        sources = Shared(source)                                          # (n,) the source of every sample
        loss = recorder.loss(batch, sources.expand(weight, batch.index))  # weight (3,)
        ...
        gradient = sources.derivative(Truncated(steps=3), trajectory, outer)  # (3,) d outer / d weight

    In an outer run: ``Maple(..., learn="weights", shared=sources)``.

    Attributes:
        source: ``(n,)`` int64, the source of the sample with the global id 0, 1, ..., n-1, from 0 on; columns of
            booleans are 0 and 1.
        count: number of sources; None: as many as `source` names.

    Raises:
        ValueError: `source` is empty or has a number outside of 0 .. count-1.
        TypeError: numbers that are no integers. Names become numbers by ``numpy.unique(names, return_inverse=True)``.

    Example:
        >>> sources = Shared(torch.tensor([0, 2, 0, 1]))
        >>> sources.expand(torch.tensor([1.0, 0.5, 2.0]), torch.tensor([3, 0])).tolist()
        [0.5, 1.0]
        >>> sources.sum(torch.tensor([1.0, 10.0, 100.0]), torch.tensor([0, 1, 2])).tolist()
        [101.0, 0.0, 10.0]
    """

    source: Int[Tensor, " n"]
    count: int | None = None

    def __post_init__(self) -> None:
        source = _check.tensor("source", self.source, ("n",))
        source = _check.integers("source", source.long() if source.dtype == torch.bool else source)
        if not len(source):
            raise ValueError("source must name the source of at least one sample, got none")
        low, high = (int(one) for one in source.aminmax())
        count = high + 1 if self.count is None else _check.integer("count", self.count, low=1)
        if low < 0 or high >= count:
            raise ValueError(f"source must hold numbers 0 .. {count - 1}, got {low if low < 0 else high}")
        _check.store(self, source=source, count=count)

    def expand(
        self, weight: Float[Tensor, " count"] | Numbers, index: Int[Tensor, " k"] | Numbers
    ) -> Float[Tensor, " k"]:
        """Return the weight of the source of each sample ``(k,)``, with a graph to `weight` where that has one.

        Args:
            weight: ``(count,)`` of the sources.
            index: ``(k,)`` global ids of samples, those of a batch, say.

        Raises:
            ValueError: `weight` has another length, or an id is not among those that `source` is of.
        """
        weight = _check.floats("weight", weight, ("count",))
        if len(weight) != self.count:
            raise ValueError(f"weight must have an entry for each of the {self.count} sources, got {len(weight)}")
        return weight[self.sources_of(index).to(weight.device)]

    def sum(
        self, values: Float[Tensor, " k"], index: Int[Tensor, " k"] | Numbers, ranks: Ranks = ALONE
    ) -> Float[Tensor, " count"]:
        """Return the sum of the samples' `values` in each source ``(count,)``: `expand` transposed.

        Args:
            values: ``(k,)`` of samples, such as the derivatives by their weights.
            index: ``(k,)`` their global ids.
            ranks: the processes of which each has samples of its own.
        """
        own = self.sources_of(index).to(values.device)
        _check.same_length(values=values, index=own)
        return ranks.sum(values.new_zeros(self.count or 0).index_add_(0, own, values))

    def mean(self, values: Float[Tensor, " k"], index: Int[Tensor, " k"] | Numbers) -> Float[Tensor, " count"]:
        """Return the mean of the samples' `values` in each source ``(count,)``; NaN where there is no sample of one."""
        return self.sum(values, index) / self.sum(torch.ones_like(values), index)

    def derivative(
        self, estimator: Estimator, trajectory: Trajectory, outer: Outer, index: Tensor | None = None
    ) -> Float[Tensor, " count"]:
        """Return d outer / d weight ``(count,)`` of weights that were expanded in every recorded step.

        Args:
            estimator: such as `Truncated`.
            trajectory: the record.
            outer: ``module -> scalar``.
            index: sum over these samples alone; None: over all of the window.
        """
        ids = trajectory.index if index is None else index
        return self.sum(estimator(trajectory, outer, index=ids), ids, trajectory.ranks)

    def check_equal(self, name: str, values: Float[Tensor, " k"], index: Int[Tensor, " k"]) -> None:
        """Raise ValueError unless the samples' `values` are equal, up to rounding, within each source."""
        typical = self.expand(self.mean(values, index), index)
        apart = ~torch.isclose(values, typical, rtol=1e-6, atol=0.0)
        if bool(apart.any()):
            place = int(apart.nonzero()[0])
            number = int(self.sources_of(index)[place])
            raise ValueError(
                f"{name} must be equal within each source, but source {number} has {float(values[place])} beside a "
                f"mean of {float(typical[place])}: take Maple.begin(train), or shared.expand(weight, train.index)"
            )

    def sources_of(self, index: Tensor | Numbers) -> Tensor:
        """Return the source of each id ``(k,)``."""
        ids = _check.integers("index", index)
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(self.source):
            raise ValueError(
                f"source is of the samples 0 .. {len(self.source) - 1}, but index has {int(ids.max())}: give the "
                "source of every sample, in the order of their global ids"
            )
        return self.source[ids.to(self.source.device)]
