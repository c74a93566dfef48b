"""Scores of a given label by one prediction: how far the model agrees with it. High = keep, low = mislabelled."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support._check import Numbers
from steelyard.selectors import _inputs

__all__ = ["normalised_margin", "self_confidence"]


def self_confidence(
    probabilities: Float[Tensor, "n classes"] | Numbers, labels: Int[Tensor, " n"] | Numbers
) -> Float[Tensor, " n"]:
    """Return p_y, the probability of the given label, in [0, 1]; higher = keep, low = mislabelled.

    Args:
        probabilities: ``(n, classes)`` softmax outputs for samples the model was not trained on (by cross-validation):
            of its own training samples a model believes the wrong labels, too.
        labels: ``(n,)`` class ids.

    Returns:
        ``(n,)``. O(n classes) time and memory: a tenth of a second for a million samples of 10 classes.

    Raises:
        ValueError: NaN, rows that do not sum to 1, class ids out of range, another n in `labels`. TypeError: integers.

    References:
        C. Northcutt, L. Jiang, I. Chuang, Confident learning: estimating uncertainty in dataset labels, JAIR 2021,
        section 3; ``self_confidence`` of cleanlab.

    Example:
        >>> self_confidence(torch.tensor([[0.75, 0.25], [0.75, 0.25]]), torch.tensor([0, 1])).tolist()
        [0.75, 0.25]
    """
    return _given_and_rival(probabilities, labels)[0]


def normalised_margin(
    probabilities: Float[Tensor, "n classes"] | Numbers, labels: Int[Tensor, " n"] | Numbers
) -> Float[Tensor, " n"]:
    """Return (p_y - max_{c != y} p_c + 1) / 2, in [0, 1]; higher = keep, below 1/2 another class is likelier.

    Args:
        probabilities: ``(n, classes)`` softmax outputs for samples the model was not trained on.
        labels: ``(n,)`` class ids.

    Returns:
        ``(n,)``. O(n classes) time and memory: a tenth of a second for a million samples of 10 classes.

    Raises:
        ValueError: NaN, rows that do not sum to 1, class ids out of range, another n in `labels`. TypeError: integers.

    References:
        Northcutt et al., JAIR 2021, section 3 (the margin); ``normalized_margin`` of cleanlab (moved to [0, 1]).

    Example:
        >>> normalised_margin(torch.tensor([[0.75, 0.25], [0.75, 0.25]]), torch.tensor([0, 1])).tolist()
        [0.75, 0.25]
    """
    given, rival = _given_and_rival(probabilities, labels)
    return (given - rival + 1) / 2


def _given_and_rival(probabilities: Tensor | Numbers, labels: Tensor | Numbers) -> tuple[Tensor, Tensor]:
    """Return the probability of the label and the greatest of another class, ``(n,)`` each."""
    p = _inputs.distributions("probabilities", probabilities)
    index = _inputs.labels_of("labels", labels, *p.shape)[:, None]
    return p.gather(1, index)[:, 0], p.scatter(1, index, -torch.inf).amax(1)
