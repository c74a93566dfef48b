"""Wrong labels made on purpose: uniform, adversarial (high gradient norm), and confined to some samples.

Each function takes the labels and returns new ones and a mask of the samples it chose; how many it chooses is exact.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steelyard._support import _check

__all__ = ["adversarial_flips", "class_noise", "uniform_flips"]


def uniform_flips(
    targets: Int[Tensor, " n"], classes: int, share: float, generator: torch.Generator
) -> tuple[Int[Tensor, " n"], Bool[Tensor, " n"]]:
    """Give round(share n) samples, chosen at random, another class: each of the others with the same chance.

    Args:
        targets: ``(n,)`` class ids. classes: how many there are, >= 2.
        share: of the samples, in [0, 1].
        generator: source of the draws, on the CPU.

    Returns:
        The labels ``(n,)`` and which of them are wrong ``(n,)``.

    Raises:
        ValueError: a share outside of [0, 1], fewer than 2 classes, or class ids out of range.

    Example:
        >>> new, flipped = uniform_flips(torch.zeros(10, dtype=torch.long), 3, 0.2, torch.Generator().manual_seed(0))
        >>> int(flipped.sum()), bool((new[flipped] != 0).all()), bool((new[~flipped] == 0).all())
        (2, True, True)
    """
    _labels(targets, classes)
    flipped = _random_mask(torch.arange(len(targets)), _count(share, len(targets)), len(targets), generator)
    # A shift by 1 .. classes - 1, modulo the classes, reaches each other class and never the same one.
    shift = torch.randint(1, classes, (len(targets),), generator=generator)
    flipped, shift = flipped.to(targets.device), shift.to(targets.device)
    return torch.where(flipped, (targets + shift) % classes, targets), flipped


def adversarial_flips(
    probabilities: Float[Tensor, "n classes"], targets: Int[Tensor, " n"], share: float, generator: torch.Generator
) -> tuple[Int[Tensor, " n"], Bool[Tensor, " n"]]:
    """Flip the labels whose flip makes the largest gradient norms ||p - e_y||: the attack on importance sampling.

    The worst label of a sample is its unlikeliest other class; of all samples the round(share n) whose norm under
    their worst label is largest get it. With a model that has learned something these are samples that it is sure of
    and that it was right about, so they pass for the hard samples that importance sampling looks for.

    Args:
        probabilities: ``(n, classes)`` softmax outputs of the attacker's model of the data.
        targets: ``(n,)`` class ids, on the same device.
        share: of the samples, in [0, 1].
        generator: on the CPU; chooses among samples of equal norm.

    Returns:
        The labels ``(n,)`` and which of them are wrong ``(n,)``.

    Raises:
        ValueError: a share outside of [0, 1], fewer than 2 classes, class ids out of range, lengths that
            differ, or probabilities that are NaN or infinite.

    References:
        Disagreement-Regularized Importance Sampling for Adversarial Label Corruption (its threat model: corruption
        where ||p - y|| is high). The rule for the worst label is ours: it is what maximises that norm.

    Example:
        >>> p = torch.tensor([[0.9, 0.1], [0.6, 0.4]])
        >>> adversarial_flips(p, torch.tensor([0, 0]), 0.5, torch.Generator().manual_seed(0))
        (tensor([1, 0]), tensor([ True, False]))
    """
    n, classes = _check.finite("probabilities", probabilities).shape
    _labels(targets, classes)
    _check.same_length(probabilities=probabilities, targets=targets)
    others = probabilities.scatter(1, targets[:, None], torch.inf)
    least, worst = others.min(1)
    squared_norm = probabilities.square().sum(1) + 1 - 2 * least  # ||p - e_worst||^2
    shuffle = torch.randperm(n, generator=generator).to(targets.device)
    order = shuffle[squared_norm[shuffle].argsort(descending=True, stable=True)]
    flipped = torch.zeros(n, dtype=torch.bool, device=targets.device)
    flipped[order[: _count(share, n)]] = True
    return torch.where(flipped, worst, targets), flipped


def class_noise(
    targets: Int[Tensor, " n"], classes: int, share: float, generator: torch.Generator, *, noisy: Bool[Tensor, " n"]
) -> tuple[Int[Tensor, " n"], Bool[Tensor, " n"]]:
    """Redraw the labels of part of the data alone: heteroskedastic noise, which the features give away.

    round(share m) of the m samples in `noisy` get a label drawn uniformly from ALL classes, so that one in `classes` of
    them keeps its own (``new != targets`` says which are wrong).

    Args:
        targets: ``(n,)`` class ids. classes: how many there are, >= 2.
        share: of the samples in `noisy`, in [0, 1].
        generator: source of the draws, on the CPU.
        noisy: ``(n,)`` the samples whose labels are noise, such as those of one class: ``targets == 1``.

    Returns:
        The labels ``(n,)`` and which of them were redrawn ``(n,)``.

    Raises:
        ValueError: a share outside of [0, 1], fewer than 2 classes, class ids out of range, `noisy` of another length.

    References:
        Khosla et al., Understanding and Improving Neural Active Learning on Heteroskedastic Distributions, section 3
        (Noisy-Class; there the noisy samples are added to the clean ones, see `steelyard.experiments.active.noise`).

    Example:
        >>> labels = torch.tensor([0, 1, 1, 0])
        >>> new, redrawn = class_noise(labels, 2, 1.0, torch.Generator().manual_seed(0), noisy=labels == 1)
        >>> redrawn.tolist(), new[[0, 3]].tolist()
        ([False, True, True, False], [0, 0])
    """
    _labels(targets, classes)
    _check.same_length(targets=targets, noisy=noisy)
    members = noisy.cpu().nonzero().flatten()
    redrawn = _random_mask(members, _count(share, len(members)), len(targets), generator).to(targets.device)
    drawn = torch.randint(classes, (len(targets),), generator=generator).to(targets)
    return torch.where(redrawn, drawn, targets), redrawn


def _count(share: float, n: int) -> int:
    return round(_check.in_range("share", share, low=0.0, high=1.0) * n)


def _random_mask(members: Tensor, count: int, n: int, generator: torch.Generator) -> Tensor:
    """Return a mask ``(n,)`` of `count` of the `members`, chosen at random."""
    mask = torch.zeros(n, dtype=torch.bool)
    mask[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return mask


def _labels(targets: Tensor, classes: int) -> None:
    _check.integer("classes", classes, low=2)
    if len(targets) and not (int(targets.min()) >= 0 and int(targets.max()) < classes):
        raise ValueError(
            f"targets must be class ids in 0 .. {classes - 1} ({classes} classes), got values in "
            f"{int(targets.min())} .. {int(targets.max())}"
        )
