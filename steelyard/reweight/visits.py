"""What the weights of each sample have been over the steps that it was in."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers

__all__ = ["Visits"]


class Visits:
    """Counts, by global id, how often a sample was weighed, how often its weight was positive, and their sum.

    Example:
        >>> visits = Visits()
        >>> visits.add(torch.tensor([7, 3]), torch.tensor([2.0, 0.0]))
        >>> visits.add(torch.tensor([7]), torch.tensor([0.0]))
        >>> index, probabilities, weights = visits.of()
        >>> index.tolist(), probabilities.tolist(), weights.tolist()
        ([3, 7], [0.0, 0.5], [0.0, 2.0])
    """

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._sums = torch.zeros(0, 3, dtype=torch.float64)  # visits, positive weights, sum of weights
        self._dtype = torch.float32

    def __len__(self) -> int:
        return len(self._places)

    def add(self, index: Int[Tensor, " batch"], weight: Float[Tensor, " batch"]) -> None:
        """Count one visit a row; an id may stand in several rows."""
        ids = index.tolist()
        rows = [self._places.get(one, -1) for one in ids]
        if -1 in rows:
            rows = [self._places.setdefault(one, len(self._places)) for one in ids]
        if len(self._places) > len(self._sums):  # twice as much: a visit costs the same however many samples there are
            grown = self._sums.new_zeros(2 * len(self._places), 3)
            grown[: len(self._sums)] = self._sums
            self._sums = grown
        self._dtype, found = weight.dtype, weight.detach().cpu().double()
        one = torch.stack([torch.ones_like(found), (found > 0).double(), found], 1)
        self._sums.index_add_(0, torch.tensor(rows), one)

    def of(
        self, index: Int[Tensor, " n"] | Numbers | None = None
    ) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Return ids, the share of visits with a positive weight, and the mean of those weights, each ``(n,)``.

        A sample whose weight was never positive has the weight 0; one that was never weighed has 1 and 1.

        Args:
            index: ids asked for; None: all that were weighed, sorted.
        """
        index = (
            torch.tensor(sorted(self._places), dtype=torch.int64) if index is None else _check.integers("index", index)
        )
        rows = torch.tensor([self._places.get(one, -1) for one in index.tolist()], dtype=torch.int64)
        visits, positive, total = torch.cat([self._sums, torch.ones(1, 3, dtype=torch.float64)])[rows].unbind(1)
        shares, means = positive / visits, total / positive.clamp(min=1)
        return index, shares.to(self._dtype).to(index.device), means.to(self._dtype).to(index.device)

    def state_dict(self) -> dict[str, Any]:
        """Return ids ``(n,)`` and their counts ``(n, 3)``."""
        ids = torch.tensor(list(self._places), dtype=torch.int64)
        return {"ids": ids, "sums": self._sums[: len(ids)].clone(), "double": self._dtype == torch.float64}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._places = {one: row for row, one in enumerate(state["ids"].tolist())}
        self._sums = state["sums"].clone()
        self._dtype = torch.float64 if state["double"] else torch.float32
