"""Scores of one prediction per sample: how unsure the model is. Higher = less sure = picked first.

All of them prefer samples whose labels are noise; on heteroskedastic pools they fall behind random selection
(Khosla et al., "Understanding and Improving Neural Active Learning on Heteroskedastic Distributions", section 5).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.selectors import _inputs

__all__ = ["deep_gini", "entropy", "least_confidence", "margin"]


def least_confidence(probabilities: Float[Tensor, "n classes"] | Numbers) -> Float[Tensor, " n"]:
    """CONF: 1 - max_c p_c, in [0, 1 - 1/classes]; higher = picked first.

    Args:
        probabilities: ``(n, classes)`` softmax outputs.

    Raises:
        ValueError: NaN, negative entries, or rows that do not sum to 1. TypeError: integers.

    References:
        D. Wang, Y. Shang, A new active labeling method for deep learning, IJCNN 2014; Khosla et al., 4.1.

    Example:
        >>> least_confidence(torch.tensor([[0.75, 0.25], [0.5, 0.5]])).tolist()
        [0.25, 0.5]
    """
    return 1 - _inputs.distributions("probabilities", probabilities).amax(1)


def margin(probabilities: Float[Tensor, "n classes"] | Numbers) -> Float[Tensor, " n"]:
    """MARG: 1 - (p_(1) - p_(2)), in [0, 1]: how near the second class is to the likeliest; higher = picked first.

    Args:
        probabilities: ``(n, classes)`` softmax outputs.

    Raises:
        ValueError: NaN, negative entries, or rows that do not sum to 1. TypeError: integers.

    References:
        D. Roth, K. Small, Margin-based active learning for structured output spaces, ECML 2006; Khosla et al., 4.1.

    Example:
        >>> margin(torch.tensor([[0.75, 0.25, 0.0], [0.5, 0.5, 0.0]])).tolist()
        [0.5, 1.0]
    """
    first, second = _inputs.distributions("probabilities", probabilities).topk(2, dim=1).values.unbind(1)
    return 1 - (first - second)


def entropy(probabilities: Float[Tensor, "n classes"] | Numbers, *, base: float | int = math.e) -> Float[Tensor, " n"]:
    """ENT: H(p) = -sum_c p_c log p_c, with 0 log 0 = 0; higher = picked first.

    Args:
        probabilities: ``(n, classes)`` softmax outputs.
        base: of the logarithm (default: nats; DRE counts in bits, base 2).

    Returns:
        ``(n,)`` in [0, log(classes) / log(base)].

    Raises:
        ValueError: NaN, negative entries, rows that do not sum to 1, or base <= 1. TypeError: integers.

    References:
        C. E. Shannon, A mathematical theory of communication, 1948.

    Example:
        >>> entropy(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), base=2).tolist()
        [0.0, 1.0]
    """
    base = _check.in_range("base", base, low=1, open_low=True)
    return nats(_inputs.distributions("probabilities", probabilities)) / math.log(base)


def deep_gini(probabilities: Float[Tensor, "n classes"] | Numbers) -> Float[Tensor, " n"]:
    """DeepGini: 1 - sum_c p_c^2, in [0, 1 - 1/classes]; higher = picked first.

    Args:
        probabilities: ``(n, classes)`` softmax outputs.

    Raises:
        ValueError: NaN, negative entries, or rows that do not sum to 1. TypeError: integers.

    References:
        Y. Feng et al., DeepGini: prioritizing massive tests to enhance the robustness of deep neural networks,
        ISSTA 2020.

    Example:
        >>> deep_gini(torch.tensor([[1.0, 0.0], [0.5, 0.5]])).tolist()
        [0.0, 0.5]
    """
    return 1 - _inputs.distributions("probabilities", probabilities).square().sum(1)


def nats(probabilities: Tensor) -> Tensor:
    """Return the entropy over the last dimension, unchecked; `entr`, because p log p is NaN at p = 0."""
    return torch.special.entr(probabilities).sum(-1).clamp_min(0)  # rounding may put p a little above 1
