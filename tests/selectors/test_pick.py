"""RAND and top-k, and what holds for every selection."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.selectors import (
    badge,
    bait,
    batch_bald,
    craig,
    dre,
    grad_match,
    k_center,
    kmeans_plus_plus,
    lhd,
    mcp,
    partitioned,
    power_sampling,
    prob_cover,
    random_selection,
    softmax_sampling,
    softrank_sampling,
    top_k,
    typiclust,
)
from tests.selectors.pools import generator

SELECTIONS = {
    "random": lambda p, h, k, g: random_selection(len(p), k, generator=g),
    "top_k": lambda p, h, k, g: top_k(h[:, 0], k, generator=g),
    "mcp": lambda p, h, k, g: mcp(p, k),
    "dre": lambda p, h, k, g: dre(p, k, generator=g),
    "k_center": lambda p, h, k, g: k_center(h, k, generator=g),
    "kmeans": lambda p, h, k, g: kmeans_plus_plus(h, k, generator=g),
    "badge": lambda p, h, k, g: badge(p, h, k, generator=g),
    "lhd": lambda p, h, k, g: lhd(p, p.flip(1), h, h.flip(1), k, generator=g),
    "bait": lambda p, h, k, g: bait(p, h / 1e3, k),
    "grad_match": lambda p, h, k, g: grad_match(h / 1e3, k).index,
    "craig": lambda p, h, k, g: craig(h, k).index,
    "typiclust": lambda p, h, k, g: typiclust(h, k, generator=g),
    "prob_cover": lambda p, h, k, g: prob_cover(h, k, radius=1.0, generator=g),
    "batch_bald": lambda p, h, k, g: batch_bald(
        torch.stack([p, p.flip(1), p.roll(1, 1)]), k, generator=g, configurations=10
    ),
    "softmax_sampling": lambda p, h, k, g: softmax_sampling(h[:, 0], k, generator=g),
    "power_sampling": lambda p, h, k, g: power_sampling(p[:, 0], k, generator=g),
    "softrank_sampling": lambda p, h, k, g: softrank_sampling(h[:, 0], k, generator=g),
    "partitioned": lambda p, h, k, g: partitioned(
        lambda index, count: badge(p[index], h[index], count, generator=g), len(p), k, parts=min(2, len(p)), generator=g
    ),
}


@st.composite
def pools(draw):
    """Small pools full of duplicates, ties, certain predictions and zero embeddings."""
    n = draw(st.integers(1, 12))
    classes = draw(st.integers(2, 4))
    features = draw(st.integers(1, 3))
    values = st.sampled_from([0.0, 0.0, 1.0, -2.0, 0.37, 1e-6, 1e6])
    h = draw(st.lists(st.lists(values, min_size=features, max_size=features), min_size=n, max_size=n))
    weights = st.lists(st.sampled_from([0.0, 1.0, 2.0, 1e-4]), min_size=classes, max_size=classes)
    rows = draw(st.lists(weights.filter(any), min_size=n, max_size=n))
    p = torch.tensor(rows)
    return p / p.sum(1, keepdim=True), torch.tensor(h), draw(st.integers(1, n)), draw(st.integers(0, 1000))


@pytest.mark.filterwarnings("ignore::steelyard.selectors.DegenerateWarning")  # some pools are all alike
@pytest.mark.parametrize("name", SELECTIONS)
@given(pools())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_k_different_indices_in_range_by_the_seed(name, case) -> None:
    p, h, k, seed = case
    picked = SELECTIONS[name](p, h, k, generator(seed))
    assert picked.dtype == torch.int64
    assert picked.shape == (k,)
    assert picked.unique().numel() == k
    assert int(picked.min()) >= 0
    assert int(picked.max()) < len(p)
    assert picked.tolist() == SELECTIONS[name](p, h, k, generator(seed)).tolist()


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, -1.0]), min_size=1, max_size=20), st.integers(0, 100))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_top_k_takes_the_highest_with_or_without_a_generator(values, seed) -> None:
    score = torch.tensor(values)
    k = max(1, len(values) // 2)
    expected = sorted(values, reverse=True)[:k]
    assert score[top_k(score, k)].tolist() == expected
    assert score[top_k(score, k, generator=generator(seed))].tolist() == expected
    assert top_k(score, k).tolist() == sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]


def test_ties_are_broken_evenly_by_a_generator() -> None:
    source, score = generator(), torch.tensor([1.0, 0.0, 1.0, 1.0])
    counts = Counter(int(top_k(score, 1, generator=source)) for _ in range(600))
    assert set(counts) == {0, 2, 3}
    # binomial(600, 1/3): Hoeffding gives 3 * 2 exp(-2 * 80^2 / 600) < 4e-9 for a count 80 off.
    assert all(abs(count - 200) < 80 for count in counts.values())


def test_random_selection_is_uniform() -> None:
    source = generator(1)
    counts = Counter(tuple(random_selection(3, 2, generator=source).tolist()) for _ in range(1200))
    assert len(counts) == 6
    # As above: 6 * 2 exp(-2 * 110^2 / 1200) < 3e-8.
    assert all(abs(count - 200) < 110 for count in counts.values())


def test_global_random_state_is_left_alone() -> None:
    p, h = torch.rand(2, 30, 3, generator=generator()).unbind()
    p = p / p.sum(1, keepdim=True)
    state = torch.get_rng_state()
    for select in SELECTIONS.values():
        select(p, h, 5, generator())
    assert torch.equal(state, torch.get_rng_state())
