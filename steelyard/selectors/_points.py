"""Squared distances between points that are rows of a matrix, or outer products of two rows that are never formed.

    ||l_i x r_i - l_j x r_j||^2 = |l_i|^2 |r_i|^2 + |l_j|^2 |r_j|^2 - 2 (l_i . l_j)(r_i . r_j)

costs C + d products a pair where the vectors themselves have C d entries. The expansion subtracts numbers of the size
of the squared norms and is worthless where the points nearly coincide, which is where seeding needs it (a duplicate of
a centre has distance 0). Those few pairs are computed again from differences, with dl = l_i - l_j, ml = (l_i + l_j) / 2
and the same for r:

    l_i x r_i - l_j x r_j = dl x mr + ml x dr,
    || . ||^2 = |dl|^2 |mr|^2 + |ml|^2 |dr|^2 + 2 (dl . ml)(dr . mr),

which is exactly 0 for equal rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Points"]

_BLOCK = 1 << 18  # entries of one block of distances: small enough for a CPU's second cache
_GROUP = 128  # centres at a time
_GATHER = 1 << 22  # entries gathered at once for the pairs that are computed from differences
_SHIFT_ROWS = 1024
_ROOM = 2.0**-64
_APART = 2.0**60  # times as large: in float32 the square of the one is 0 beside that of the other


@dataclass(frozen=True)
class Points:
    """n points: the rows of `right`, or ``left[i] x right[i]`` where `left` is given.

    Attributes:
        right: ``(n, features)``. left: ``(n, classes)`` or None.
        norms: ``(n,)`` squared norms of the points.
    """

    right: Tensor
    left: Tensor | None
    norms: Tensor

    @classmethod
    def rows(cls, *matrices: Tensor) -> list[Points]:
        """Make points of the rows of each matrix, moved and scaled alike; O(n features) memory, one copy.

        Distances do not change by the shift and change by one factor under the scale. The shift takes out the common
        mean of, say, ReLU features, against which all pairs would look near; it is made of entries of the data, and
        the scale is a power of two, so that whole numbers stay exact (and their ties are ties).

        Entries near the greatest float are scaled first, for the difference of two may be none. Where rows are of very
        different sizes float32 becomes float64: beside a row of 1e38 the distances of ordinary rows would vanish.
        """
        return cls.scaled_rows(*matrices)[0]

    @classmethod
    def scaled_rows(cls, *matrices: Tensor) -> tuple[list[Points], float]:
        """Return `rows` and the factor by which their distances (not squared) are those of the matrices."""
        sizes = torch.cat([_row_sizes(matrix) for matrix in matrices])
        most, room = float(sizes.max()), 1.0
        if most > _APART * float(sizes[sizes > 0].min() if most else 0):
            matrices = tuple(matrix.double() for matrix in matrices)
        if most > torch.finfo(matrices[0].dtype).max / 4:
            matrices, room = tuple(matrix * _ROOM for matrix in matrices), _ROOM
        first = matrices[0]
        shift = first[:: max(1, first.shape[0] // _SHIFT_ROWS)].median(dim=0).values
        moved = [matrix - shift for matrix in matrices]
        scale = _scale(*moved)
        found = [cls(right, None, right.square().sum(1)) for right in (matrix * scale for matrix in moved)]
        return found, scale * room

    @classmethod
    def outer(cls, left: Tensor, right: Tensor) -> Points:
        """Make the points ``left[i] x right[i]``; O(n (classes + features)) memory."""
        left, right = left * _scale(left), right * _scale(right)
        return cls(right, left, left.square().sum(1) * right.square().sum(1))

    def __len__(self) -> int:
        return self.right.shape[0]

    def take(self, index: Tensor | slice) -> Points:
        """Return the points at these positions."""
        left = None if self.left is None else self.left[index]
        return Points(self.right[index], left, self.norms[index])

    def distances(self, others: Points) -> Tensor:
        """Return squared distances ``(len(self), len(others))``: relative error about sqrt(eps), 0 for equal rows."""
        inner = self.right @ others.right.T
        if self.left is not None and others.left is not None:
            inner *= self.left @ others.left.T
        squared = (self.norms[:, None] + others.norms).sub_(inner, alpha=2)
        # The error of the expansion is some eps (|a|^2 + |b|^2): below sqrt(eps) of that sum it is over sqrt(eps) of
        # the distance. Rows first: most blocks have no such pair, and then this is one look at the row minima.
        tolerance = math.sqrt(torch.finfo(squared.dtype).eps)
        near = (squared.amin(1) < tolerance * (self.norms + others.norms.max())).nonzero()[:, 0]
        if near.numel():
            pairs = squared[near] < tolerance * (self.norms[near, None] + others.norms)
            i, j = pairs.nonzero().unbind(1)
            i = near[i]
            for part in torch.arange(i.numel(), device=i.device).split(max(1, _GATHER // self.right.shape[1])):
                squared[i[part], j[part]] = self._from_differences(others, i[part], j[part])
        return squared.clamp_(min=0)

    def lower(self, nearest: Tensor, centres: Points) -> None:
        """Lower ``nearest[i]`` in place to the least squared distance from point i to a centre; memory O(n)."""
        for first in range(0, len(centres), _GROUP):
            members = centres.take(slice(first, first + _GROUP))
            rows = max(1, _BLOCK // len(members))
            for start in range(0, len(self), rows):
                block = slice(start, start + rows)
                least = self.take(block).distances(members).amin(1)
                torch.minimum(nearest[block], least, out=nearest[block])

    def _from_differences(self, others: Points, i: Tensor, j: Tensor) -> Tensor:
        dr, mr = _difference_and_mean(self.right[i], others.right[j])
        if self.left is None or others.left is None:
            return dr.square().sum(1)
        dl, ml = _difference_and_mean(self.left[i], others.left[j])
        straight = dl.square().sum(1) * mr.square().sum(1) + ml.square().sum(1) * dr.square().sum(1)
        return straight + 2 * (dl * ml).sum(1) * (dr * mr).sum(1)


def _difference_and_mean(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return a - b, (a + b) / 2


def _scale(*matrices: Tensor) -> float:
    """Return the power of two that brings the greatest entry near 1: squares then neither overflow nor vanish."""
    most = math.frexp(torch.finfo(matrices[0].dtype).max)[1] - 2  # of the scale itself, either way
    return 2.0 ** -min(max(math.frexp(_size(*matrices))[1], -most), most)


def _size(*matrices: Tensor) -> float:
    return max(float(end.abs()) for matrix in matrices if matrix.numel() for end in matrix.aminmax())


def _row_sizes(matrix: Tensor) -> Tensor:
    low, high = matrix.aminmax(dim=1)
    return torch.maximum(-low, high)
