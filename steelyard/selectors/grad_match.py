"""GradMatch: a few weighted samples whose gradients add up to the gradient of all."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.selectors import _inputs
from steelyard.selectors.pick import WeightedSelection

__all__ = ["grad_match"]

_TOLERANCE = 1e-10  # of the largest first slope: below it a slope is rounding


def grad_match(
    gradients: Float[Tensor, "n features"] | Numbers,
    k: int,
    *,
    target: Float[Tensor, " features"] | Numbers | None = None,
    ridge: float = 0.5,
) -> WeightedSelection:
    """GradMatch: minimise |sum_{i in S} w_i g_i - target|^2 + ridge |w|^2 over w >= 0 and S of k samples, greedily.

    Orthogonal matching pursuit: add the sample along which the error falls most steeply, fit all weights again, and so
    on. Weights stay >= 0 (those of samples in a training loss): one that would fall below leaves, as in the active set
    method for nonnegative least squares, of which these are the first steps.

    Args:
        gradients: ``(n, features)`` of each sample's loss, finite: by the logits (`cross_entropy_gradients`), or those
            times the embeddings.
        k: how many, in 1 .. n.
        target: ``(features,)`` what to match: None, the sum over all samples; or n times a validation set's mean.
        ridge: lambda >= 0; it spreads the weight. In the unit of squared gradients.

    Returns:
        Index and weight ``(k,)``, in the order added. Where fewer than k samples do (the error falls along no other),
        the rest are those along which it rises least, with weight 0. O(k (n features + k^3)) time, O(n features)
        memory: a million samples of 16 features and k = 20 take about a second.

    Raises:
        ValueError: NaN or infinite entries, another number of features in `target`, k outside of 1 .. n, ridge < 0.
            TypeError: integers.

    References:
        K. Killamsetty et al., GRAD-MATCH: gradient matching based data subset selection for efficient deep model
        training, ICML 2021, Algorithm 2 (ridge 0.5); C. Lawson, R. Hanson, Solving least squares problems, 1974,
        chapter 23. Departure: where a weight leaves, its sample may come back later.

    Example:
        >>> g = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
        >>> grad_match(g, 2, ridge=0.0)
        WeightedSelection(index=tensor([1, 0]), weight=tensor([1., 2.]))
    """
    rows = _inputs.embeddings("gradients", gradients)
    k = _inputs.count(k, rows.shape[0])
    ridge = _check.in_range("ridge", ridge, low=0)
    g = rows.double()
    aim = g.sum(0) if target is None else _inputs.matrix("target", target, ("features",)).to(g)
    if aim.shape[0] != g.shape[1]:
        raise ValueError(f"target has {aim.shape[0]} features, but gradients has {g.shape[1]}")
    weight = torch.zeros(g.shape[0], dtype=torch.float64, device=g.device)
    picked: list[int] = []
    slope = g @ aim
    least = _TOLERANCE * float(slope.abs().max())
    for _ in range(3 * k):  # a bound on samples that leave and come back by rounding, as is usual for this method
        slope[picked] = -torch.inf
        best = int(slope.argmax())
        if len(picked) == k or float(slope[best]) <= least:
            break
        picked = _fit(g, aim, weight, [*picked, best], ridge)
        if best not in picked:  # rounding: it falls along this one no more
            break
        slope = g @ (aim - weight[picked] @ g[picked])
    slope[picked] = -torch.inf
    order = slope.argsort(descending=True, stable=True)[: k - len(picked)].tolist()
    index = torch.tensor([*picked, *order], device=g.device)
    return WeightedSelection(index, weight[index].to(rows.dtype))


def _fit(g: Tensor, aim: Tensor, weight: Tensor, active: list[int], ridge: float | int) -> list[int]:
    """Set the active weights to the best ones >= 0, in place; return those of them that stay."""
    while active:
        rows = g[active]
        gram = rows @ rows.T
        gram.diagonal().add_(ridge)
        best = torch.linalg.pinv(gram, hermitian=True) @ (rows @ aim)  # without a ridge copies make it singular
        now = weight[active]
        if bool((best > 0).all()):
            weight[active] = best
            return active
        falling = best <= 0
        ratios = torch.where(falling, now / (now - best).clamp_min(torch.finfo(now.dtype).tiny), torch.inf)
        step = float(ratios.min())
        moved = now + step * (best - now)
        moved = torch.where(ratios == step, 0, moved.clamp_min(0))
        weight[active] = moved
        active = [one for one, stays in zip(active, (moved > 0).tolist(), strict=True) if stays]
    return active
