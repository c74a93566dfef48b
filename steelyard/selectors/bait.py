"""BAIT: the batch after which the model is surest of the whole pool, by the output layer's Fisher information."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.selectors import _inputs

__all__ = ["bait"]

_BLOCK = 1 << 20  # entries of one block of gains
_SWAMPED = 1e10  # below it the picks were those of arithmetic in 60 digits, at a hundred times it no longer


def bait(
    probabilities: Float[Tensor, "n classes"] | Numbers,
    embeddings: Float[Tensor, "n features"] | Numbers,
    k: int,
    *,
    labelled_probabilities: Float[Tensor, "m classes"] | Numbers | None = None,
    labelled_embeddings: Float[Tensor, "m features"] | Numbers | None = None,
    ridge: float = 1.0,
    oversample: float = 2.0,
) -> Int[Tensor, " k"]:
    """BAIT: greedily minimise trace(M^-1 F), M the information of the labelled and the picked, F the pool's mean.

    The information of sample x is (diag p - p p^T) x (h h^T), of the cross-entropy by the output layer's weights.
    `oversample` k samples are added one by one, then all but k of them removed one by one; nothing is random.

    Args:
        probabilities: ``(n, classes)`` softmax outputs. embeddings: ``(n, features)`` inputs of the output layer.
        k: how many, in 1 .. n.
        labelled_probabilities: ``(m, classes)``, labelled_embeddings: ``(m, features)``, of the samples labelled
            already; both or neither. They are in F, too.
        ridge: lambda > 0, M's start: the precision of a prior on the weights.
        oversample: >= 1, how many times k are added before the removals (1: none; the paper 2); at most n.

    Returns:
        ``(k,)`` int64 indices without duplicates: in the order added, without those removed; ties by the lowest index.
        Each addition costs O(n D^2 + D^3) time, D = classes * features, and O(n (classes + features) + D^2)
        memory. It is the dearest selection here: 100 of 10,000 samples take half a minute of one core with D = 100,
        more than an hour with D = 1,280. Project the embeddings, or take a part of the pool.

    Raises:
        ValueError: NaN, rows that do not sum to 1, sizes that do not fit, k outside of 1 .. n, ridge <= 0,
            oversample < 1; embeddings so large that ridge is lost beside them. TypeError: integers.

    References:
        J. T. Ash et al., Gone fishing: neural active learning with Fisher embeddings, NeurIPS 2021, Algorithm 1.
        Departure: M is ridge I plus plain sums of informations, the precision after as many observations; the paper
        divides that of the labelled samples by their number, and the authors' code weights both kinds by their counts.

    Example:
        >>> p = torch.full((3, 2), 0.5)
        >>> bait(p, torch.tensor([[3.0, 0.0], [2.9, 0.0], [0.0, 1.0]]), 2, ridge=0.1).tolist()
        [0, 2]
    """
    p, h = _pair("probabilities", probabilities, "embeddings", embeddings)
    n, classes = p.shape
    k = _inputs.count(k, n)
    ridge = _check.in_range("ridge", ridge, low=0, open_low=True)
    oversample = _check.in_range("oversample", oversample, low=1)
    size = classes * h.shape[1]
    precision = ridge * torch.eye(size, dtype=torch.float64, device=p.device)
    pool = _information(p, h)
    fisher = pool / n
    if (labelled_probabilities is None) != (labelled_embeddings is None):
        raise ValueError("pass both labelled_probabilities and labelled_embeddings, or neither")
    if labelled_probabilities is not None and len(labelled_probabilities):
        q, g = _pair("labelled_probabilities", labelled_probabilities, "labelled_embeddings", labelled_embeddings)
        if (q.shape[1], g.shape[1]) != (classes, h.shape[1]):
            raise ValueError(
                f"the labelled samples must have {classes} classes and {h.shape[1]} features, got {q.shape[1]} and "
                f"{g.shape[1]}"
            )
        known = _information(q.to(p.device), g.to(p.device))
        precision += known
        fisher = (pool + known) / (n + len(q))
    if float(fisher.diagonal().sum()) * n > _SWAMPED * ridge:
        raise ValueError(
            f"the information of the samples swamps ridge = {ridge:g} in float64: raise ridge, or scale the embeddings "
            f"down (their largest entry is {float(h.abs().max()):.3g})"
        )
    picked = _greedily(precision, fisher, p, h, k, min(n, round(oversample * k)))
    return torch.tensor(picked, device=p.device)


def _greedily(precision: Tensor, fisher: Tensor, p: Tensor, h: Tensor, k: int, most: int) -> list[int]:
    """Return the positions of `most` samples added one by one, less all but `k` of them removed one by one."""
    covariance = torch.cholesky_inverse(torch.linalg.cholesky(precision))
    picked: list[int] = []
    while len(picked) < most:
        gain = _change(covariance, fisher, p, h, sign=1)
        gain[picked] = -torch.inf
        picked.append(int(gain.argmax()))
        covariance = _moved(covariance, _factor(p[picked[-1]], h[picked[-1]]), sign=1)
    while len(picked) > k:
        loss = _change(covariance, fisher, p[picked], h[picked], sign=-1)
        gone = picked.pop(len(picked) - 1 - int(loss.flip(0).argmin()))  # at a tie the last one added
        covariance = _moved(covariance, _factor(p[gone], h[gone]), sign=-1)
    return picked


def _pair(first: str, p: object, second: str, h: object) -> tuple[Tensor, Tensor]:
    chances, hidden = _inputs.distributions(first, p), _inputs.embeddings(second, h)  # type: ignore[arg-type]
    _check.same_length(**{first: chances, second: hidden})
    return chances.double(), hidden.double()


def _root(p: Tensor) -> Tensor:
    """Return S ``(..., classes, classes)`` with S S^T = diag p - p p^T: columns sqrt(p_y) (e_y - p)."""
    root = p.sqrt()
    return torch.diag_embed(root) - p[..., :, None] * root[..., None, :]


def _factor(p: Tensor, h: Tensor) -> Tensor:
    """Return V ``(classes * features, classes)`` of one sample, whose information is V V^T."""
    return (_root(p)[:, None, :] * h[None, :, None]).flatten(0, 1)


def _information(p: Tensor, h: Tensor) -> Tensor:
    """Return the sum of the samples' informations ``(D, D)``, block by block of two classes."""
    classes, features = p.shape[1], h.shape[1]
    total = p.new_empty(classes, features, classes, features)
    for a in range(classes):
        for b in range(a, classes):
            weight = -p[:, a] * p[:, b] if a != b else p[:, a] * (1 - p[:, a])
            total[a, :, b] = (h * weight[:, None]).T @ h
            total[b, :, a] = total[a, :, b].T.clone()  # with one feature the two are one
    return total.view(classes * features, classes * features)


def _change(covariance: Tensor, fisher: Tensor, p: Tensor, h: Tensor, sign: int) -> Tensor:
    """Return by how much trace(M^-1 F) falls (sign 1: the sample is added) or rises (-1: it is removed), ``(n,)``.

    With V of the sample and Woodbury: trace of (I + sign V^T M^-1 V)^-1 V^T M^-1 F M^-1 V.
    """
    classes, features = p.shape[1], h.shape[1]
    outer = covariance @ fisher @ covariance
    rows = max(1, _BLOCK // (classes * classes * features))
    eye = torch.eye(classes, dtype=p.dtype, device=p.device)
    found = []
    for p_part, h_part in zip(p.split(rows), h.split(rows), strict=True):
        root = _root(p_part)
        inner = eye + sign * _between(covariance, root, h_part)
        moved = torch.linalg.solve(inner, _between(outer, root, h_part))
        found.append(moved.diagonal(dim1=1, dim2=2).sum(1))
    return torch.cat(found)


def _between(matrix: Tensor, root: Tensor, h: Tensor) -> Tensor:
    """Return V^T matrix V ``(n, classes, classes)`` with V = root x h, which is never formed."""
    classes, features = root.shape[1], h.shape[1]
    by_row = matrix.view(classes, features, -1).transpose(0, 1).flatten(1)  # (features, classes * D)
    half = (h @ by_row).view(len(h), classes, classes, features)
    middle = torch.einsum("nabf,nf->nab", half, h)
    return root.transpose(1, 2) @ middle @ root


def _moved(covariance: Tensor, factor: Tensor, sign: int) -> Tensor:
    """Return (M + sign V V^T)^-1 from M^-1, symmetric to the last digit."""
    wide = covariance @ factor
    inner = torch.eye(factor.shape[1], dtype=factor.dtype, device=factor.device) + sign * (factor.T @ wide)
    moved = covariance - sign * (wide @ torch.linalg.solve(inner, wide.T))
    return (moved + moved.T) / 2
