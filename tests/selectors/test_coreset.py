"""k-center greedy is the textbook's, pick by pick."""

from __future__ import annotations

import pytest
import torch

from steelyard.selectors import coreset, k_center
from tests.selectors.pools import brute_k_center, generator, pool


@pytest.mark.parametrize("candidates", [1, 5, 512])  # a pass a pick, some picks a pass, all picks in one
@pytest.mark.parametrize("labelled", [0, 1, 7])
@pytest.mark.parametrize("seed", range(3))
def test_trace_is_exact(monkeypatch, candidates, labelled, seed) -> None:
    monkeypatch.setattr(coreset, "_CANDIDATES", candidates)
    _, h = pool(80, seed=seed)
    known = pool(labelled, seed=seed + 100)[1] if labelled else h[:0]
    assert k_center(h, 40, labelled=known).tolist() == brute_k_center(h, 40, known)


@pytest.mark.parametrize("candidates", [3, 512])
def test_float32_agrees_with_float64(monkeypatch, candidates) -> None:
    monkeypatch.setattr(coreset, "_CANDIDATES", candidates)
    _, h = pool(2000, features=32, dtype=torch.float32)
    h = h + 50  # a common offset, as features after a ReLU have, costs digits where it is not taken out
    assert k_center(h, 60).tolist() == k_center(h.double(), 60).tolist()


@pytest.mark.parametrize("candidates", [1, 4, 512])
def test_ties_go_to_the_lowest_index(monkeypatch, candidates) -> None:
    monkeypatch.setattr(coreset, "_CANDIDATES", candidates)
    grid = torch.cartesian_prod(torch.arange(6.0), torch.arange(6.0))
    assert k_center(grid, 36).tolist() == brute_k_center(grid, 36, grid[:0])


def test_duplicates_of_centres_come_last_in_order() -> None:
    _, h = pool(6)
    embeddings = torch.cat([h, h])
    picked = k_center(embeddings, 12, labelled=h[:1])
    assert picked[5:].tolist() == sorted(picked[5:].tolist())
    assert sorted((picked[:5] % 6).tolist()) == [1, 2, 3, 4, 5]
    assert sorted(picked.tolist()) == list(range(12))


def test_all_zero_embeddings() -> None:
    assert k_center(torch.zeros(700, 3), 5).tolist() == [0, 1, 2, 3, 4]
    assert k_center(torch.zeros(4, 3), 4, labelled=torch.zeros(1, 3)).tolist() == [0, 1, 2, 3]


def test_a_generator_draws_the_first_pick_only() -> None:
    _, h = pool(40)
    firsts = set()
    for seed in range(20):
        picked = k_center(h, 10, generator=generator(seed))
        firsts.add(int(picked[0]))
        assert picked[1:].tolist() == brute_k_center(h, 9, h[picked[:1]])
    assert len(firsts) > 5


@pytest.mark.parametrize(
    ("labelled", "k", "message"),
    [
        (torch.full((2, 6), float("nan")), 2, "labelled has 12 entries that are NaN"),
        (None, 11, "k is 11, but the pool has only 10 samples"),
        (None, 0, "k must be >= 1, got 0"),
    ],
)
def test_errors(labelled, k, message) -> None:
    with pytest.raises(ValueError, match=message):
        k_center(pool(10, dtype=torch.float32)[1], k, **({} if labelled is None else {"labelled": labelled}))
