"""The selectors by name: what each reads of a `View`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard import selectors
from steelyard._support._modules import evaluating
from steelyard.experiments.active.view import View

__all__ = ["DROPOUT_SELECTORS", "SELECTORS", "Selector"]

Selector: TypeAlias = Callable[[View, int, torch.Generator], Int[Tensor, " k"]]
"""(view, k, generator) -> k different positions among the view's candidates."""

DRAWS = 10
"""Stochastic forward passes of BALD and dropout entropy."""
_VECTORS = 1000  # label vectors that BatchBALD's joint entropies are estimated from
_TARGETS = 100  # pool inputs that EPIG wants predictions of
_FOR_RADIUS = 2000  # pool samples that ProbCover's radius is found on: of more the pairs cost more than the cover
_PIECE = 512  # samples at once, where a gradient for each class is held


def _random(view: View, k: int, generator: torch.Generator) -> Tensor:
    return selectors.random_selection(len(view.candidates), k, generator=generator, device=view.candidates.device)


def _top(score: Callable[[View], Tensor]) -> Selector:
    def select(view: View, k: int, generator: torch.Generator) -> Tensor:
        return selectors.top_k(score(view), k, generator=generator)

    return select


def _by_inputs(score: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]) -> Selector:
    def select(view: View, k: int, generator: torch.Generator) -> Tensor:
        with evaluating(view.model):
            scores = torch.cat([score(view.model, part) for part in view.candidates.split(_PIECE)])
        return selectors.top_k(scores, k, generator=generator)

    return select


def _coreset(view: View, k: int, generator: torch.Generator) -> Tensor:
    return selectors.k_center(view.embeddings, k, labelled=view.labelled_embeddings, generator=generator)


def _coreset_softmax(view: View, k: int, generator: torch.Generator) -> Tensor:
    return selectors.k_center(view.probabilities, k, labelled=view.labelled_probabilities, generator=generator)


def _lhd(view: View, k: int, generator: torch.Generator) -> Tensor:
    states = (view.logits, view.average_logits, view.embeddings, view.average_embeddings)
    return selectors.lhd(*states, k, generator=generator)


def _typiclust(view: View, k: int, generator: torch.Generator) -> Tensor:
    return selectors.typiclust(view.embeddings, k, labelled=view.labelled_embeddings, generator=generator)


def _prob_cover(view: View, k: int, generator: torch.Generator) -> Tensor:
    """Cover the pool with balls of the paper's radius, found on some of it."""
    known = view.embeddings[_some(view, _FOR_RADIUS, generator)]
    clusters = selectors.kmeans(known, min(view.probabilities.shape[1], len(known)), generator=generator)
    # In one cluster alone all points coincide, or there is one: a ball of no size holds it.
    radius = selectors.pure_radius(known, clusters) if bool((clusters != clusters[0]).any()) else 0.0
    labelled = view.labelled_embeddings
    return selectors.prob_cover(view.embeddings, k, radius=radius, labelled=labelled, generator=generator)


def _batch_bald(view: View, k: int, generator: torch.Generator) -> Tensor:
    draws = view.dropout_probabilities(DRAWS)
    return selectors.batch_bald(draws, k, generator=generator, configurations=_VECTORS)


def _power_bald(view: View, k: int, generator: torch.Generator) -> Tensor:
    return selectors.power_sampling(selectors.bald(view.dropout_probabilities(DRAWS)), k, generator=generator)


def _softmax_bald(view: View, k: int, generator: torch.Generator) -> Tensor:
    return selectors.softmax_sampling(selectors.bald(view.dropout_probabilities(DRAWS)), k, generator=generator)


def _guessed_gradients(view: View) -> Float[Tensor, "m classes"]:
    """Return the loss's gradients by the logits, were each label the one that the model predicts, as BADGE has them."""
    return selectors.cross_entropy_gradients(view.probabilities, view.probabilities.argmax(1))


def _craig(view: View, k: int, generator: torch.Generator) -> Tensor:
    return selectors.craig(_guessed_gradients(view), k).index


def _grad_match(view: View, k: int, generator: torch.Generator) -> Tensor:
    """Match the gradients by the last layer: those by the logits alone are matched exactly by a few samples."""
    gradients = _guessed_gradients(view)[:, :, None] * view.embeddings[:, None]  # (m, classes, features)
    return selectors.grad_match(gradients.flatten(1), k).index


def _epig(view: View, k: int, generator: torch.Generator) -> Tensor:
    """EPIG for the pool's own inputs: some of them are the targets."""
    draws = view.dropout_probabilities(DRAWS)
    score = selectors.epig(draws, draws[:, _some(view, _TARGETS, generator)])
    return selectors.top_k(score, k, generator=generator)


def _density(view: View, k: int, generator: torch.Generator) -> Tensor:
    score = selectors.density_weighted(selectors.entropy(view.probabilities), view.embeddings)
    return selectors.top_k(score, k, generator=generator)


def _bait(view: View, k: int, generator: torch.Generator) -> Tensor:
    return selectors.bait(
        view.probabilities,
        view.embeddings,
        k,
        labelled_probabilities=view.labelled_probabilities,
        labelled_embeddings=view.labelled_embeddings,
    )


def _some(view: View, most: int, generator: torch.Generator) -> Tensor:
    count = len(view.candidates)
    return selectors.random_selection(count, min(most, count), generator=generator, device=view.candidates.device)


SELECTORS: Mapping[str, Selector] = {
    "rand": _random,
    "conf": _top(lambda view: selectors.least_confidence(view.probabilities)),
    "marg": _top(lambda view: selectors.margin(view.probabilities)),
    "ent": _top(lambda view: selectors.entropy(view.probabilities)),
    "bald": _top(lambda view: selectors.bald(view.dropout_probabilities(DRAWS))),
    "dropout_entropy": _top(lambda view: selectors.dropout_entropy(view.dropout_probabilities(DRAWS))),
    "deep_gini": _top(lambda view: selectors.deep_gini(view.probabilities)),
    "mcp": lambda view, k, generator: selectors.mcp(view.probabilities, k),
    "dfal": _by_inputs(selectors.dfal),
    "egl": _by_inputs(selectors.expected_input_gradient_length),
    "coreset": _coreset,
    "coreset_softmax": _coreset_softmax,
    "badge": lambda view, k, generator: selectors.badge(view.probabilities, view.embeddings, k, generator=generator),
    "lhd": _lhd,
    "typiclust": _typiclust,
    "prob_cover": _prob_cover,
    "batch_bald": _batch_bald,
    "power_bald": _power_bald,
    "softmax_bald": _softmax_bald,
    "epig": _epig,
    "vote_entropy": _top(lambda view: selectors.vote_entropy(view.dropout_probabilities(DRAWS))),
    "density": _density,
    "bait": _bait,
    "craig": _craig,
    "grad_match": _grad_match,
    "dre": lambda view, k, generator: selectors.dre(view.probabilities, k, generator=generator),
}
"""LHD's paper compares rand, conf, marg, bald, coreset, badge and lhd; Robust Active Learning the others (its EGL is by
the inputs' gradients and its core-set runs on softmax outputs: `coreset_softmax`) and its own, dre. Neither has
typiclust, prob_cover, batch_bald, power_bald, softmax_bald, epig, vote_entropy (the committee is the dropout draws),
density (entropy times density), craig and grad_match (with predicted labels for those that nobody knows yet; their
weights are not used) and bait, whose cost grows with the square of classes x features."""

DROPOUT_SELECTORS = ("bald", "batch_bald", "dropout_entropy", "epig", "power_bald", "softmax_bald", "vote_entropy")
"""Those that need a net with dropout."""
