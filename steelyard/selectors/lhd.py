"""LHD: where the model still moves, there are clean, hard samples; noise has converged to its poor fit early on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.selectors import _inputs
from steelyard.selectors.seeding import kmeans_plus_plus

__all__ = ["lhd", "state_difference"]


def state_difference(
    main_logits: Float[Tensor, "n classes"] | Numbers,
    ema_logits: Float[Tensor, "n classes"] | Numbers,
    main_hidden: Float[Tensor, "n features"] | Numbers,
    ema_hidden: Float[Tensor, "n features"] | Numbers,
    *,
    labels: Int[Tensor, " n"] | Numbers | None = None,
) -> Float[Tensor, "n features"]:
    """Return lh = |l_ema - l_main| (h_ema - h_main); its norm is a score (higher = cleaner and harder = picked first).

    Args:
        main_logits, ema_logits: ``(n, classes)`` of the model and of its moving average (logits, because the loss of a
            class whose probability has rounded to 0 would be infinite).
        main_hidden, ema_hidden: ``(n, features)`` penultimate embeddings.
        labels: ``(n,)`` class ids of the losses, where known; by default the moving average's predictions.

    Returns:
        ``(n, features)``. O(n (classes + features)).

    Raises:
        ValueError: NaN, shapes that differ, class ids out of range. TypeError: integers.

    References:
        S. Khosla et al., Understanding and Improving Neural Active Learning on Heteroskedastic Distributions, 4.2.

    Example:
        >>> main, ema = torch.tensor([[0.0, 0.0]]), torch.tensor([[50.0, 0.0]])
        >>> state_difference(main, ema, torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 2.0]]))
        tensor([[0.0000, 1.3863]])
    """
    tensors = {"main_logits": main_logits, "ema_logits": ema_logits}
    main, ema = (_inputs.matrix(name, value, ("n", "classes")) for name, value in tensors.items())
    h_main = _inputs.embeddings("main_hidden", main_hidden)
    h_ema = _inputs.embeddings("ema_hidden", ema_hidden)
    _check.same_length(main_logits=main, main_hidden=h_main)
    _same_shape(main_logits=main, ema_logits=ema)
    _same_shape(main_hidden=h_main, ema_hidden=h_ema)
    targets = ema.argmax(1) if labels is None else _inputs.class_ids("labels", labels, main.shape[1])
    _check.same_length(main_logits=main, labels=targets)
    change = (F.cross_entropy(ema, targets, reduction="none") - F.cross_entropy(main, targets, reduction="none")).abs()
    return change[:, None] * (h_ema - h_main)


def lhd(
    main_logits: Float[Tensor, "n classes"] | Numbers,
    ema_logits: Float[Tensor, "n classes"] | Numbers,
    main_hidden: Float[Tensor, "n features"] | Numbers,
    ema_hidden: Float[Tensor, "n features"] | Numbers,
    k: int,
    *,
    generator: torch.Generator,
) -> Int[Tensor, " k"]:
    """LHD: k-means++ seeding over the state differences, from the one of largest norm on.

    Args:
        main_logits, ema_logits, main_hidden, ema_hidden: see `state_difference`.
        k: how many, in 1 .. n.
        generator: source of the draws.

    Returns:
        ``(k,)`` int64 indices without duplicates, in the order drawn. O(n features k) time, O(n features) memory. Two
        models that agree give all-zero differences and a uniform draw (after index 0).

    Raises:
        ValueError: NaN, shapes that differ, k outside of 1 .. n. TypeError: integers.

    References:
        S. Khosla et al., Algorithm 1, lines 5-12. The paper leaves the first centre open; we start as BADGE does.

    Example:
        >>> logits, hidden = torch.eye(3), torch.eye(3)
        >>> ema = logits * torch.tensor([[1.0], [2.0], [3.0]])
        >>> lhd(logits, ema, hidden, ema, 1, generator=torch.Generator().manual_seed(0)).tolist()
        [2]
    """
    given = (main_logits, ema_logits, main_hidden, ema_hidden)
    difference = state_difference(*given)
    if not bool(difference.isfinite().all()):  # of two numbers near float32's greatest
        difference = state_difference(*(torch.as_tensor(one).double() for one in given))
    return kmeans_plus_plus(difference, k, generator=generator, first="largest")


def _same_shape(**tensors: Tensor) -> None:
    if len({tuple(tensor.shape) for tensor in tensors.values()}) != 1:
        shapes = ", ".join(f"{name} has {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"these need the same shape: {shapes}")
