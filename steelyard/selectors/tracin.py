"""TracIn: how much the steps on a training sample lowered the loss of others, by gradients at checkpoints.

Of the output layer alone, whose gradient is an outer product: (gradient by the logits) x (input of the layer). It is
never formed: <a x h, b x g> = <a, b> <h, g>. For gradients of all layers through the end of a training run see
`steelyard.reweight.influence`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.selectors import _inputs

__all__ = ["cross_entropy_gradients", "self_influence", "tracin"]

_ROWS = 8192


def cross_entropy_gradients(
    probabilities: Float[Tensor, "*checkpoints n classes"] | Numbers, labels: Int[Tensor, " n"] | Numbers
) -> Float[Tensor, "*checkpoints n classes"]:
    """Return p - e_y, the gradient of the cross-entropy by the logits.

    Args:
        probabilities: ``(n, classes)`` or ``(checkpoints, n, classes)`` softmax outputs. labels: ``(n,)`` class ids.

    Returns:
        Of the same shape. The label's entry is minus the sum of the others, for p - 1 rounds off.

    Raises:
        ValueError: NaN, rows that do not sum to 1, class ids out of range, another n in `labels`. TypeError: integers.

    Example:
        >>> cross_entropy_gradients(torch.tensor([[0.75, 0.25]]), torch.tensor([1])).tolist()
        [[0.75, -0.75]]
    """
    given = _check.tensor("probabilities", probabilities)
    dims = ("checkpoints", "n", "classes") if given.ndim == 3 else ("n", "classes")
    p = _inputs.distributions("probabilities", given, dims)
    index = _inputs.labels_of("labels", labels, p.shape[-2], p.shape[-1])[:, None].expand(*p.shape[:-1], 1)
    rest = p.scatter(-1, index, 0.0)
    return rest.scatter(-1, index, -rest.sum(-1, keepdim=True))


def tracin(
    gradients: Float[Tensor, "checkpoints n classes"] | Numbers,
    embeddings: Float[Tensor, "checkpoints n features"] | Numbers,
    target_gradients: Float[Tensor, "checkpoints m classes"] | Numbers,
    target_embeddings: Float[Tensor, "checkpoints m features"] | Numbers,
    rates: Float[Tensor, " checkpoints"] | Numbers,
) -> Float[Tensor, " n"]:
    """TracInCP: sum over checkpoints of ``rate * <gradient of sample, mean gradient of targets>``; higher = keep.

    About how far steps on the sample have lowered the targets' mean loss: proponents are above 0, opponents below.

    Args:
        gradients: ``(checkpoints, n, classes)`` of the training samples' losses by the logits
            (`cross_entropy_gradients`), at models saved while training.
        embeddings: ``(checkpoints, n, features)`` inputs of the output layer; a column of ones stands for its bias.
        target_gradients: ``(checkpoints, m, classes)``, target_embeddings: ``(checkpoints, m, features)``, of
            validation samples (never test samples, if the score decides what to keep).
        rates: ``(checkpoints,)`` learning rates >= 0 at them.

    Returns:
        ``(n,)``. O(checkpoints (n + m) classes features) time, O(classes features) memory beside the inputs.

    Raises:
        ValueError: NaN, numbers of checkpoints, samples, classes or features that differ, rates < 0.
            TypeError: integers.

    References:
        G. Pruthi et al., Estimating training data influence by tracing gradient descent, NeurIPS 2020, section 3.2
        (TracInCP) and 4 (the last layer alone).

    Example:
        >>> a, h = torch.tensor([[[0.5, -0.5], [-0.5, 0.5]]]), torch.ones(1, 2, 3)
        >>> tracin(a, h, a[:, :1], h[:, :1], torch.tensor([0.1]))
        tensor([ 0.1500, -0.1500])
    """
    a, h, steps = _checkpoints("", gradients, embeddings, rates)
    b, g, _ = _checkpoints("target_", target_gradients, target_embeddings, rates)
    if (a.shape[0], a.shape[2], h.shape[2]) != (b.shape[0], b.shape[2], g.shape[2]):
        raise ValueError(
            f"the targets must have the checkpoints, classes and features of the training samples, got "
            f"{tuple(b.shape)} and {tuple(g.shape)} for {tuple(a.shape)} and {tuple(h.shape)}"
        )
    score = torch.zeros(a.shape[1], dtype=torch.float64, device=a.device)
    for a_c, h_c, b_c, g_c, rate in zip(a, h, b.to(a.device), g.to(a.device), steps, strict=True):
        mean = torch.zeros(b.shape[2], g.shape[2], dtype=torch.float64, device=a.device)  # (classes, features)
        for b_rows, g_rows in _pieces(b_c, g_c):
            mean += b_rows.double().T @ g_rows.double() / len(b_c)
        products = [((h_rows.double() @ mean.T) * a_rows.double()).sum(1) for a_rows, h_rows in _pieces(a_c, h_c)]
        score += rate * torch.cat(products)
    return score.to(a.dtype)


def self_influence(
    gradients: Float[Tensor, "checkpoints n classes"] | Numbers,
    embeddings: Float[Tensor, "checkpoints n features"] | Numbers,
    rates: Float[Tensor, " checkpoints"] | Numbers,
) -> Float[Tensor, " n"]:
    """Return TracIn of each sample on itself, sum of rate |gradient|^2; higher = hard, or mislabelled.

    Args:
        gradients: ``(checkpoints, n, classes)``, embeddings: ``(checkpoints, n, features)``, rates: ``(checkpoints,)``,
            see `tracin`.

    Returns:
        ``(n,)`` >= 0. O(checkpoints n (classes + features)).

    Raises:
        ValueError, TypeError: as `tracin`.

    References:
        Pruthi et al., NeurIPS 2020, section 4.1 (mislabelled samples have a high self-influence).

    Example:
        >>> self_influence(torch.tensor([[[0.5, -0.5]]]), torch.ones(1, 1, 4), torch.tensor([0.1]))
        tensor([0.2000])
    """
    a, h, steps = _checkpoints("", gradients, embeddings, rates)
    score = torch.zeros(a.shape[1], dtype=torch.float64, device=a.device)
    for a_c, h_c, rate in zip(a, h, steps, strict=True):
        pieces = _pieces(a_c, h_c)
        norms = [x.double().square().sum(1) * z.double().square().sum(1) for x, z in pieces]
        score += rate * torch.cat(norms)
    return score.to(a.dtype)


def _pieces(a: Tensor, h: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows of both, a few at a time: their float64 copies are then small."""
    return zip(a.split(_ROWS), h.split(_ROWS), strict=True)


def _checkpoints(
    prefix: str, gradients: Tensor | Numbers, embeddings: Tensor | Numbers, rates: Tensor | Numbers
) -> tuple[Tensor, Tensor, list[float]]:
    a = _inputs.matrix(f"{prefix}gradients", gradients, ("checkpoints", "n", "classes"))
    h = _inputs.matrix(f"{prefix}embeddings", embeddings, ("checkpoints", "n", "features"))
    steps = _inputs.matrix("rates", rates, ("checkpoints",)).double().tolist()
    if a.shape[:2] != h.shape[:2] or len(steps) != a.shape[0]:
        raise ValueError(
            f"{prefix}gradients {tuple(a.shape)}, {prefix}embeddings {tuple(h.shape)} and rates ({len(steps)},) must "
            f"have the same checkpoints, and the first two the same samples"
        )
    if min(steps) < 0:
        raise ValueError(f"rates must be >= 0, the least is {min(steps):.6g}")
    return a, h, steps
