"""The two contracts of this room, and the two simplest selections.

A `Score` turns what a model says about n samples into one number per sample. Higher = picked first. A `Selection`
turns it into k different indices in the order in which they were picked; what is drawn comes from a
`torch.Generator` (on any device: draws are made where the generator lives, so a CPU generator gives a GPU pool the
picks it gives a CPU pool). `top_k` makes a selection of any score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.selectors import _inputs
from steelyard.selectors.direction import Direction, turned

__all__ = ["Score", "Selection", "WeightedSelection", "random_selection", "top_k"]

Score = Callable[..., Float[Tensor, " n"]]
Selection = Callable[..., Int[Tensor, " k"]]


@dataclass(frozen=True)
class WeightedSelection:
    """Picked samples, and a weight for each in the loss that they stand for all samples in.

    Attributes:
        index: ``(k,)`` int64, different ones, in the order picked.
        weight: ``(k,)`` >= 0.
    """

    index: Int[Tensor, " k"]
    weight: Float[Tensor, " k"]


def random_selection(
    n: int, k: int, *, generator: torch.Generator, device: torch.device | str | None = None
) -> Int[Tensor, " k"]:
    """RAND: k of n samples, every ordered choice equally likely.

    Args:
        n: size of the pool. k: how many, in 1 .. n.
        generator: source of the draw.
        device: where the result goes (default: the generator's device).

    Returns:
        ``(k,)`` int64 indices without duplicates. O(n).

    Raises:
        ValueError: k outside of 1 .. n.

    Example:
        >>> sorted(random_selection(4, 4, generator=torch.Generator().manual_seed(0)).tolist())
        [0, 1, 2, 3]
    """
    n = _check.integer("n", n, low=1)
    k = _inputs.count(k, n)
    return _permutation(n, generator)[:k].to(device if device is not None else generator.device)


def top_k(
    score: Float[Tensor, " n"] | Numbers,
    k: int,
    *,
    generator: torch.Generator | None = None,
    of: str | Direction | None = None,
) -> Int[Tensor, " k"]:
    """Select the k samples of highest score, highest first.

    Args:
        score: ``(n,)`` finite.
        k: how many, in 1 .. n.
        generator: breaks ties at random; without it the lowest index comes first. In a pool that is sorted (by class,
            by source) ties at the lowest index are a bias: pass one.
        of: which score it is, a name in `DIRECTIONS`: of a score whose high values mean hard or mislabelled (`el2n`)
            the k lowest are selected, lowest first, the ones most worth keeping. None: the highest, whatever it is.

    Returns:
        ``(k,)`` int64 indices without duplicates, on the device of `score`. O(n log n).

    Raises:
        ValueError: NaN or infinite scores, k outside of 1 .. n, or an unknown name in `of`.

    Example:
        >>> top_k(torch.tensor([0.1, 0.9, 0.5, 0.9]), 3).tolist()
        [1, 3, 2]
        >>> top_k(torch.tensor([0.1, 0.9, 0.5, 0.9]), 2, of="el2n").tolist()
        [0, 2]
    """
    score = turned(_inputs.matrix("score", score, ("n",)), of)
    n = score.shape[0]
    k = _inputs.count(k, n)
    if generator is None:
        return score.argsort(descending=True, stable=True)[:k]
    shuffled = _permutation(n, generator).to(score.device)
    return shuffled[score[shuffled].argsort(descending=True, stable=True)[:k]]


def _permutation(n: int, generator: torch.Generator) -> Tensor:
    _check.generator("generator", generator)
    return torch.randperm(n, generator=generator, device=generator.device)
