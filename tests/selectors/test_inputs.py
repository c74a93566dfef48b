"""What a selector refuses, and how it says so."""

from __future__ import annotations

import pytest
import torch

from steelyard import selectors
from tests.selectors.pools import generator

NAN = float("nan")
GOOD = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
EMBEDDINGS = torch.ones(2, 3)
LABELS = torch.tensor([0, 1])


BAD_PROBABILITIES = [
    (torch.tensor([[0.5, 0.5], [NAN, 1.0]]), ValueError, r"probabilities has 1 entries that are NaN .* at \[1, 0\]"),
    (torch.tensor([[0.5, 0.5], [0.7, 0.7]]), ValueError, r"row \[1\] sums to 1.4; pass softmax outputs, not logits"),
    (torch.tensor([[1.5, -0.5]]), ValueError, "probabilities must be >= 0, its least entry is -0.5"),
    (torch.tensor([[1.0]]), ValueError, "at least 2 classes"),
    (torch.ones(0, 2), ValueError, "probabilities is empty"),
    (torch.tensor([0.5, 0.5]), ValueError, r"must have the shape \(n, classes\), got \(2,\)"),
    (torch.tensor([[1, 0]]), TypeError, "must be floating point, got torch.int64"),
]
OF_PROBABILITIES = {
    "least_confidence": selectors.least_confidence,
    "margin": selectors.margin,
    "entropy": selectors.entropy,
    "deep_gini": selectors.deep_gini,
    "mcp": lambda p: selectors.mcp(p, 1),
    "dre": lambda p: selectors.dre(p, 1, generator=generator()),
    "badge": lambda p: selectors.badge(p, EMBEDDINGS, 1, generator=generator()),
    "egl": lambda p: selectors.expected_gradient_length(p, EMBEDDINGS),
    "el2n": lambda p: selectors.el2n(p, LABELS),
    "self_confidence": lambda p: selectors.self_confidence(p, LABELS),
    "normalised_margin": lambda p: selectors.normalised_margin(p, LABELS),
    "bait": lambda p: selectors.bait(p, EMBEDDINGS, 1),
    "cross_entropy_gradients": lambda p: selectors.cross_entropy_gradients(p, LABELS),
}


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("name", OF_PROBABILITIES)
@pytest.mark.parametrize(("bad", "error", "message"), BAD_PROBABILITIES)
def test_probabilities(name, bad, error, message) -> None:
    with pytest.raises(error, match=message):
        OF_PROBABILITIES[name](bad)


CALLS = {
    "random k": (lambda: selectors.random_selection(2, 3, generator=generator()), "k is 3"),
    "score 2d": (lambda: selectors.top_k(torch.ones(2, 2), 1), r"score must have the shape \(n\)"),
    "no features": (lambda: selectors.k_center(torch.ones(2, 0), 1), "embeddings has no features"),
    "lengths": (
        lambda: selectors.badge(GOOD, torch.ones(3, 2), 1, generator=generator()),
        "probabilities has 2, embeddings has 3",
    ),
    "features": (
        lambda: selectors.k_center(EMBEDDINGS, 1, labelled=torch.ones(1, 2)),
        "labelled has 2 features, but embeddings has 3",
    ),
    "first": (
        lambda: selectors.kmeans_plus_plus(EMBEDDINGS, 1, generator=generator(), first="larger"),
        "did you mean 'largest'",
    ),
    "one draw": (lambda: selectors.bald(GOOD[None]), "at least 2"),
    "draws": (lambda: selectors.bald(GOOD), r"must have the shape \(draws, n, classes\)"),
    "lhd shapes": (
        lambda: selectors.state_difference(GOOD, GOOD, EMBEDDINGS, torch.ones(2, 4)),
        r"main_hidden has \(2, 3\), ema_hidden has \(2, 4\)",
    ),
    "one model": (lambda: selectors.rank_disagreement(torch.ones(1, 3)), "needs at least 2"),
    "delta": (lambda: selectors.certificate(torch.ones(3), 2, delta=1.0), r"delta must be finite and in \(0, 1\)"),
    "certificate": (lambda: selectors.certificate(torch.ones(1), 2), "at least 2 samples"),
    "norms": (lambda: selectors.importance_probabilities(torch.tensor([-1.0])), "norms must be >= 0"),
    "all zero": (lambda: selectors.importance_probabilities(torch.zeros(2)), "are 0 for all samples"),
    "sum": (
        lambda: selectors.importance_draws(torch.ones(2), 1, generator=generator()),
        "probabilities must sum to 1, got 2",
    ),
    "bins": (lambda: selectors.dre(GOOD, 1, generator=generator(), bins=0), "bins must be >= 1"),
    "base": (lambda: selectors.entropy(GOOD, base=1.0), "base must be finite and > 1"),
    "parts": (
        lambda: selectors.partitioned(lambda index, k: index[:k], 3, 1, parts=4, generator=generator()),
        r"parts must be in \[1, 3\]",
    ),
    "model output": (lambda: selectors.dfal(lambda x: x[:, 0], EMBEDDINGS), r"model must return \(n, classes\)"),
    "inputs NaN": (lambda: selectors.dfal(lambda x: x, torch.full((1, 2), NAN)), "inputs has 2 entries that are NaN"),
    "steps": (lambda: selectors.dfal(lambda x: x, EMBEDDINGS, steps=0), "steps must be >= 1"),
    "decay": (lambda: selectors.ema(torch.nn.Linear(1, 1), 1.0), r"decay must be finite and in \[0, 1\)"),
    "no models": (lambda: selectors.Ensemble([]), "models is empty"),
}


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("name", CALLS)
def test_errors(name) -> None:
    call, message = CALLS[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("wrong", [None, 3])
@pytest.mark.parametrize(
    "call",
    [
        lambda g: selectors.random_selection(3, 2, generator=g),
        lambda g: selectors.kmeans_plus_plus(EMBEDDINGS, 1, generator=g),
        lambda g: selectors.badge(GOOD, EMBEDDINGS, 1, generator=g),
        lambda g: selectors.lhd(GOOD, GOOD, EMBEDDINGS, EMBEDDINGS, 1, generator=g),
        lambda g: selectors.dre(GOOD, 1, generator=g),
        lambda g: selectors.importance_draws(torch.tensor([0.0, 1.0]), 1, generator=g),
        lambda g: selectors.partitioned(lambda index, k: index[:k], 3, 1, parts=2, generator=g),
        lambda g: selectors.kmeans(EMBEDDINGS, 1, generator=g),
        lambda g: selectors.typiclust(EMBEDDINGS, 1, generator=g),
        lambda g: selectors.prob_cover(EMBEDDINGS, 1, radius=1.0, generator=3 if g is None else g),
        lambda g: selectors.k_center(EMBEDDINGS, 1, generator=3 if g is None else g),
        lambda g: selectors.top_k(torch.ones(2), 1, generator=3 if g is None else g),
    ],
)
def test_what_is_no_generator(call, wrong) -> None:
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator, such as .*, got (None|3)"):
        call(wrong)


def test_a_seed_beyond_64_bits() -> None:
    with pytest.raises(ValueError, match="random_state must be in"):
        selectors.Query(score=lambda x: x[:, 0], random_state=10**20).query([[1.0]], [None])
