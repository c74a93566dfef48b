"""The selectors by name: what each reads of a `View`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from steelyard import selectors
from steelyard._support._modules import evaluating
from steelyard.experiments.active.view import View

__all__ = ["DROPOUT_SELECTORS", "SELECTORS", "Selector"]

Selector: TypeAlias = Callable[[View, int, torch.Generator], Int[Tensor, " k"]]
"""(view, k, generator) -> k different positions among the view's candidates."""

DRAWS = 10
"""Stochastic forward passes of BALD and dropout entropy."""
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
    "dre": lambda view, k, generator: selectors.dre(view.probabilities, k, generator=generator),
}
"""LHD's paper compares rand, conf, marg, bald, coreset, badge and lhd; Robust Active Learning the others (its EGL is by
the inputs' gradients and its core-set runs on softmax outputs: `coreset_softmax`) and its own, dre."""

DROPOUT_SELECTORS = ("bald", "dropout_entropy")
"""Those that need a net with dropout."""
