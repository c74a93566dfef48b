"""Query by committee: how far the members of an ensemble disagree. Higher = asked for first."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from steelyard._support._check import Numbers
from steelyard.selectors.stochastic import information, members
from steelyard.selectors.uncertainty import nats

__all__ = ["consensus_kl", "vote_entropy"]


def vote_entropy(probabilities: Float[Tensor, "members n classes"] | Numbers) -> Float[Tensor, " n"]:
    """Return the entropy (nats) of the members' votes, each for its likeliest class; higher = asked for first.

    A member whose likeliest classes tie votes for the first of them.

    Args:
        probabilities: ``(members, n, classes)`` softmax outputs, members >= 2, as of `Ensemble.probabilities`.

    Returns:
        ``(n,)`` in [0, log(min(members, classes))]. O(members n classes) time and memory: a second or two for a
        million samples of 10 classes and 4 members.

    Warns:
        DegenerateWarning: all members are identical: the score is 0.

    Raises:
        ValueError: fewer than 2 members, NaN, negative entries, or rows that do not sum to 1. TypeError: integers.

    References:
        I. Dagan, S. Engelson, Committee-based sampling for training probabilistic classifiers, ICML 1995; B. Settles,
        Active learning literature survey, 2009, section 3.2 (hard vote entropy).

    Example:
        >>> vote_entropy(torch.tensor([[[0.9, 0.1], [0.9, 0.1]], [[0.4, 0.6], [0.6, 0.4]]]))
        tensor([0.6931, 0.0000])
    """
    p = members(probabilities, "members")
    votes = torch.nn.functional.one_hot(p.argmax(2), p.shape[2]).sum(0)
    return nats(votes.double() / p.shape[0]).to(p.dtype)


def consensus_kl(probabilities: Float[Tensor, "members n classes"] | Numbers) -> Float[Tensor, " n"]:
    """Return the mean over members of KL(p_m || mean p), in nats; higher = asked for first.

    It is the number that `bald` gives of the same tensor: the two names are of two readings.

    Args:
        probabilities: ``(members, n, classes)`` softmax outputs, members >= 2.

    Returns:
        ``(n,)`` in [0, log(min(members, classes))]. O(members n classes) time and memory: a second or two for a
        million samples of 10 classes and 4 members.

    Warns:
        DegenerateWarning: all members are identical: the score is 0.

    Raises:
        ValueError: fewer than 2 members, NaN, negative entries, or rows that do not sum to 1. TypeError: integers.

    References:
        A. McCallum, K. Nigam, Employing EM and pool-based active learning for text classification, ICML 1998,
        section 4.1; Settles 2009, section 3.2.

    Example:
        >>> consensus_kl(torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]]))
        tensor([0.6931, 0.0000])
    """
    return information(members(probabilities, "members"))
