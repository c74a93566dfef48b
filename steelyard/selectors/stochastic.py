"""Scores of several predictions per sample: dropout draws or an ensemble. Higher = picked first."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard._support._modules import evaluating
from steelyard.selectors import _inputs
from steelyard.selectors.uncertainty import nats

__all__ = ["DegenerateWarning", "bald", "dropout_entropy", "dropout_probabilities", "information", "members"]


class DegenerateWarning(UserWarning):
    """A score that is the same for all samples by construction: what it selects is arbitrary."""


def bald(probabilities: Float[Tensor, "draws n classes"] | Numbers) -> Float[Tensor, " n"]:
    """BALD: H(mean_t p_t) - mean_t H(p_t), the information (nats) a label holds about the model; higher = picked first.

    Computed as mean_t KL(p_t || mean p), which is the same number without the cancellation: exactly 0 where the draws
    agree, never negative, accurate in float32.

    Args:
        probabilities: ``(draws, n, classes)`` softmax outputs, draws >= 2.

    Returns:
        ``(n,)`` in [0, log(min(draws, classes))]. O(draws n classes) time, O(n classes) memory.

    Warns:
        DegenerateWarning: all draws are identical, as with a net without dropout (or in eval mode): the score is 0.

    Raises:
        ValueError: fewer than 2 draws, NaN, negative entries, or rows that do not sum to 1. TypeError: integers.

    References:
        N. Houlsby et al., Bayesian active learning for classification and preference learning, 2011 (eq. 2);
        Y. Gal et al., Deep Bayesian active learning with image data, ICML 2017 (section 4).

    Example:
        >>> draws = torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]])
        >>> bald(draws)
        tensor([0.6931, 0.0000])
    """
    return information(members(probabilities))


def dropout_entropy(probabilities: Float[Tensor, "draws n classes"] | Numbers) -> Float[Tensor, " n"]:
    """Dropout entropy: H(mean_t p_t), the predictive entropy (nats) of the averaged draws; higher = picked first.

    Args:
        probabilities: ``(draws, n, classes)`` softmax outputs.

    Returns:
        ``(n,)`` in [0, log classes].

    Warns:
        DegenerateWarning: all of several draws are identical; what is left is the entropy of one prediction.

    Raises:
        ValueError: fewer than 2 draws, NaN, negative entries, or rows that do not sum to 1. TypeError: integers.

    References:
        Y. Gal et al., ICML 2017 (section 4, "max entropy"); Guo et al., Robust Active Learning, 2021.

    Example:
        >>> dropout_entropy(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        tensor([0.6931])
    """
    draws = members(probabilities)
    return nats(_mean(draws)).to(draws.dtype)


@torch.no_grad()
def dropout_probabilities(
    model: nn.Module, inputs: Shaped[Tensor, "n *shape"] | Numbers, draws: int, *, seed: int, chunk: int | None = None
) -> Float[Tensor, "draws n classes"]:
    """Return softmax outputs of `draws` passes with only the dropout layers in training mode.

    Modes are put back afterwards, and so is the global random state: dropout takes no generator, so the passes run in
    a fork of that state seeded with `seed`.

    Args:
        model: a module that returns logits ``(n, classes)``.
        inputs: ``(n, ...)``. draws: >= 2.
        seed: of the masks. chunk: samples per pass (default: all; another chunk draws other masks).

    Raises:
        ValueError: fewer than 2 draws, or `chunk` < 1.

    References:
        Y. Gal, Z. Ghahramani, Dropout as a Bayesian approximation, ICML 2016.

    Example:
        >>> net = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2))
        >>> dropout_probabilities(net, torch.ones(4, 3), draws=5, seed=0).shape
        torch.Size([5, 4, 2])
    """
    draws, seed = _check.integer("draws", draws, low=2), _check.seed("seed", seed)
    inputs = _check.tensor("inputs", inputs)
    size = inputs.shape[0] if chunk is None else _check.integer("chunk", chunk, low=1)
    devices = [inputs.device] if inputs.device.type == "cuda" else []
    with _only_dropout_trains(model), torch.random.fork_rng(devices):
        # Only the generator that the passes draw from: torch.manual_seed would reseed every device.
        source = torch.cuda.default_generators[inputs.device.index] if devices else torch.default_generator
        source.manual_seed(seed)
        passes = [torch.cat([model(part).softmax(1) for part in inputs.split(size)]) for _ in range(draws)]
    return torch.stack(passes)


@contextmanager
def _only_dropout_trains(model: nn.Module) -> Iterator[None]:
    with evaluating(model):
        for module in model.modules():
            if isinstance(module, _DropoutNd):
                module.train()
        yield


def members(probabilities: Tensor | Numbers, called: str = "draws") -> Tensor:
    """Return `probabilities` ``(draws, n, classes)`` checked; warn where the draws are identical."""
    draws = _inputs.distributions("probabilities", probabilities, (called, "n", "classes"))
    if draws.shape[0] < 2:
        one = called.removesuffix("s")
        raise ValueError(
            f"probabilities has one {one}; a score of disagreement needs at least 2 (dropout or an ensemble)"
        )
    if bool((draws == draws[0]).all()):
        warnings.warn(
            f"all {draws.shape[0]} {called} are identical, so the samples cannot be told apart by how {called} "
            f"disagree: a net without dropout (or in eval mode) makes BALD 0 everywhere; use dropout or an ensemble",
            DegenerateWarning,
            stacklevel=3,
        )
    return draws


def information(draws: Tensor) -> Tensor:
    """Return mean_t KL(p_t || mean p) ``(n,)`` of `draws` ``(draws, n, classes)``, unchecked."""
    mean = _mean(draws).clamp_min(torch.finfo(torch.float64).tiny)  # 0 / 0 in a class that no draw believes in
    found = torch.stack([torch.xlogy(p, p / mean).sum(1) for p in map(torch.Tensor.double, draws)]).mean(0)
    apart = torch.stack([(p != draws[0]).any(1) for p in draws]).any(
        0
    )  # the mean of equal float64 numbers is not exact
    return torch.where(apart, found.clamp_min(0), 0).to(draws.dtype)


def _mean(draws: Tensor) -> Tensor:
    # float64: the sum of identical float32 numbers is then exact, so identical draws have exactly their own mean.
    return draws.sum(0, dtype=torch.float64) / draws.shape[0]
