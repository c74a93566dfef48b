"""Scores of a whole training run: what the model said about a sample's label, epoch by epoch."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support._check import Numbers
from steelyard.selectors import _inputs

__all__ = ["aum", "mean_confidence", "variability"]


def aum(
    logits: Float[Tensor, "epochs n classes"] | Numbers, labels: Int[Tensor, " n"] | Numbers
) -> Float[Tensor, " n"]:
    """AUM: the margin z_y - max_{c != y} z_c, averaged over epochs; higher = more worth keeping (low = mislabelled).

    Args:
        logits: ``(epochs, n, classes)`` as they were while the sample was trained on. labels: ``(n,)`` class ids.

    Returns:
        ``(n,)``. O(epochs n classes).

    Raises:
        ValueError: NaN, fewer than 2 classes, class ids out of range, another n in `labels`. TypeError: integers.

    References:
        G. Pleiss et al., Identifying mislabeled data using the area under the margin ranking, NeurIPS 2020, eq. 1-2.

    Example:
        >>> aum(torch.tensor([[[2.0, 1.0]], [[5.0, 0.0]]]), torch.tensor([0]))
        tensor([3.])
    """
    values = _inputs.matrix("logits", logits, ("epochs", "n", "classes"))
    if values.shape[2] < 2:
        raise ValueError(f"logits needs at least 2 classes, got {values.shape[2]}")
    index = _label_index(values, labels)
    others = values.scatter(2, index, -torch.inf).amax(2)
    return (values.gather(2, index)[..., 0] - others).mean(0)


def mean_confidence(
    probabilities: Float[Tensor, "epochs n classes"] | Numbers, labels: Int[Tensor, " n"] | Numbers
) -> Float[Tensor, " n"]:
    """Dataset map: mean over epochs of p_y, in [0, 1]; higher = easier (low = hard or mislabelled).

    Args:
        probabilities: ``(epochs, n, classes)`` softmax outputs. labels: ``(n,)`` class ids.

    Raises:
        ValueError: NaN, rows that do not sum to 1, class ids out of range, another n in `labels`. TypeError: integers.

    References:
        S. Swayamdipta et al., Dataset cartography, EMNLP 2020, section 2.

    Example:
        >>> mean_confidence(torch.tensor([[[0.5, 0.5]], [[1.0, 0.0]]]), torch.tensor([0])).tolist()
        [0.75]
    """
    return _confidence(probabilities, labels).mean(0)


def variability(
    probabilities: Float[Tensor, "epochs n classes"] | Numbers, labels: Int[Tensor, " n"] | Numbers
) -> Float[Tensor, " n"]:
    """Dataset map: standard deviation over epochs of p_y, in [0, 1/2]; higher = ambiguous = picked first.

    Args:
        probabilities: ``(epochs, n, classes)`` softmax outputs. labels: ``(n,)`` class ids.

    Returns:
        ``(n,)``; divided by the number of epochs, as in the paper, so 0 for one epoch.

    Raises:
        ValueError: NaN, rows that do not sum to 1, class ids out of range, another n in `labels`. TypeError: integers.

    References:
        S. Swayamdipta et al., Dataset cartography, EMNLP 2020, section 2.

    Example:
        >>> variability(torch.tensor([[[0.5, 0.5]], [[1.0, 0.0]]]), torch.tensor([0])).tolist()
        [0.25]
    """
    return _confidence(probabilities, labels).std(0, correction=0)


def _confidence(probabilities: Tensor | Numbers, labels: Tensor | Numbers) -> Tensor:
    values = _inputs.distributions("probabilities", probabilities, ("epochs", "n", "classes"))
    return values.gather(2, _label_index(values, labels))[..., 0]


def _label_index(values: Tensor, labels: Tensor | Numbers) -> Tensor:
    targets = _inputs.class_ids("labels", labels, values.shape[2])
    if targets.shape[0] != values.shape[1]:
        raise ValueError(f"labels has {targets.shape[0]} entries, but n is {values.shape[1]}")
    return targets[None, :, None].expand(values.shape[0], -1, 1)
