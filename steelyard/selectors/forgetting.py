"""Forgetting events: how often a sample that was learned is lost again in training."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.selectors import _inputs

__all__ = ["forgetting_events"]


def forgetting_events(
    predictions: Int[Tensor, "epochs n"] | Numbers, labels: Int[Tensor, " n"] | Numbers
) -> Float[Tensor, " n"]:
    """Count the epochs in which a sample was right before and is wrong now; higher = hard, or mislabelled.

    Args:
        predictions: ``(epochs, n)`` class ids that the model predicted, in the order of training. The paper reads them
            as each minibatch passes.
        labels: ``(n,)`` class ids.

    Returns:
        ``(n,)`` whole numbers as float32; a sample that was never right gets `epochs`, above every count there can be
        (the paper says infinitely many). O(epochs n).

    Raises:
        ValueError: no epochs or samples, negative class ids, another n in `labels`. TypeError: class ids that are not
            integers.

    References:
        M. Toneva et al., An empirical study of example forgetting during deep neural network learning, ICLR 2019,
        section 3 and Algorithm 1.

    Example:
        >>> seen = torch.tensor([[0, 1, 1], [1, 1, 1], [0, 1, 1], [1, 1, 1]])
        >>> forgetting_events(seen, torch.tensor([0, 1, 0])).tolist()
        [2.0, 0.0, 4.0]
    """
    given = _check.tensor("predictions", predictions, ("epochs", "n"))
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise TypeError(f"predictions must hold class ids, got {given.dtype}; pass outputs.argmax(-1)")
    if not given.numel():
        raise ValueError(f"predictions is empty: its shape is {tuple(given.shape)}")
    targets = _inputs.labels_of("labels", labels, given.shape[1], None)
    if int(given.min()) < 0:
        raise ValueError(f"predictions must be class ids >= 0, the least is {int(given.min())}")
    right = given == targets
    lost = (right[:-1] & ~right[1:]).sum(0)
    return torch.where(right.any(0), lost, given.shape[0]).float()
