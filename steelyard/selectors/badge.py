"""BADGE: k-means++ over the gradients that the last layer would get if the model's own guess were the label."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.selectors import _inputs
from steelyard.selectors._points import Points
from steelyard.selectors.seeding import seed_points

__all__ = ["badge"]


def badge(
    probabilities: Float[Tensor, "n classes"] | Numbers,
    embeddings: Float[Tensor, "n features"] | Numbers,
    k: int,
    *,
    generator: torch.Generator,
) -> Int[Tensor, " k"]:
    """BADGE: k-means++ seeding over g_i = (p_i - onehot(argmax p_i)) x h_i, from the g of largest norm on.

    g is the gradient of the cross-entropy by the output layer's weights (without its bias, as in the authors' code); it
    has classes * features entries and is never formed.

    Args:
        probabilities: ``(n, classes)`` softmax outputs.
        embeddings: ``(n, features)`` inputs of the output layer.
        k: how many, in 1 .. n.
        generator: source of the draws.

    Returns:
        ``(k,)`` int64 indices without duplicates, in the order drawn; where all points left coincide with picked ones
        the rest is drawn uniformly. O(n (classes + features) k) time, O(n (classes + features)) memory.

    Raises:
        ValueError: NaN, rows that do not sum to 1, another n in `embeddings`, k outside of 1 .. n. TypeError: integers.

    References:
        J. T. Ash et al., Deep batch active learning by diverse, uncertain gradient lower bounds, ICLR 2020,
        Algorithm 1. Some implementations add a centre at the origin; neither the paper nor this does.

    Example:
        >>> p = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.5, 0.5]])
        >>> h = torch.tensor([[3.0, 0.0], [7.0, 7.0], [0.0, 4.0]])
        >>> badge(p, h, 2, generator=torch.Generator().manual_seed(0)).tolist()[0]
        2
    """
    p = _inputs.distributions("probabilities", probabilities)
    h = _inputs.embeddings("embeddings", embeddings)
    k = _inputs.count(k, _check.same_length(probabilities=p, embeddings=h))
    _check.generator("generator", generator)
    dtype = torch.promote_types(p.dtype, h.dtype)
    points = Points.outer(residual(p).to(dtype), h.to(dtype))
    return seed_points(points, k, int(points.norms.argmax()), generator)


def residual(probabilities: Tensor) -> Tensor:
    """Return p - onehot(argmax p); its entry at the argmax is minus the sum of the others, as p - 1 rounds off."""
    guess = probabilities.argmax(1, keepdim=True)
    rest = probabilities.scatter(1, guess, 0.0)
    return rest.scatter(1, guess, -rest.sum(1, keepdim=True))
