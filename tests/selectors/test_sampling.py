"""Batches drawn by their scores follow the distribution that they say."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import pytest
import torch
from scipy import stats

from steelyard.selectors import power_sampling, softmax_sampling, softrank_sampling, top_k
from tests.selectors.pools import generator

SCORE = torch.tensor([0.3, 1.2, 0.6, 0.05], dtype=torch.float64)
RANKS = torch.tensor([3.0, 1.0, 2.0, 4.0], dtype=torch.float64)
MASSES = {
    "softmax": (softmax_sampling, lambda beta: (beta * SCORE).exp()),
    "power": (power_sampling, lambda beta: SCORE**beta),
    "softrank": (softrank_sampling, lambda beta: RANKS**-beta),
}


@pytest.mark.parametrize("name", MASSES)
@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
def test_sequences_are_drawn_one_after_the_other_in_proportion(name, beta) -> None:
    draw, mass_of = MASSES[name]
    mass = mass_of(beta).tolist()
    exact = {}
    for one, two in permutations(range(4), 2):
        exact[one, two] = mass[one] / sum(mass) * mass[two] / (sum(mass) - mass[one])
    source, times = generator(3), 600
    counts = Counter(tuple(draw(SCORE, 2, generator=source, beta=beta).tolist()) for _ in range(times))
    assert set(counts) <= set(exact)
    found = stats.chisquare([counts[pair] for pair in exact], [times * p for p in exact.values()])
    assert found.pvalue > 1e-5


@pytest.mark.parametrize("name", MASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_cold_draws_are_the_top(name, dtype) -> None:
    draw = MASSES[name][0]
    picked = draw(SCORE.to(dtype), 3, generator=generator(), beta=1e6)
    assert picked.dtype == torch.int64
    assert picked.tolist() == top_k(SCORE, 3).tolist()
    assert picked.tolist() == draw(SCORE.to(dtype), 3, generator=generator(), beta=1e6).tolist()
    assert sorted(draw(SCORE, 4, generator=generator()).tolist()) == [0, 1, 2, 3]


def test_equal_scores_are_equally_likely() -> None:
    source = generator(1)
    counts = Counter(int(softrank_sampling(torch.tensor([2.0, 2.0, 2.0]), 1, generator=source)) for _ in range(600))
    # binomial(600, 1/3): Hoeffding, as in test_pick, gives less than 4e-9 for a count 80 off.
    assert all(abs(counts[i] - 200) < 80 for i in range(3))


def test_a_power_of_zero_comes_last_at_random() -> None:
    source, score = generator(2), torch.tensor([0.0, 1e-30, 0.0])
    drawn = [power_sampling(score, 3, generator=source, beta=beta).tolist() for beta in [0.0, 1.0] * 100]
    assert {row[0] for row in drawn} == {1}
    assert {row[1] for row in drawn} == {0, 2}


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("draw", [one for one, _ in MASSES.values()], ids=MASSES)
def test_refusals(draw) -> None:
    with pytest.raises(ValueError, match="beta must be finite and >= 0"):
        draw(torch.ones(2), 1, generator=generator(), beta=-1.0)
    with pytest.raises(TypeError, match="generator must be a torch.Generator"):
        draw(torch.ones(2), 1, generator=None)


def test_power_refuses_negative_scores() -> None:
    with pytest.raises(ValueError, match="score must be >= 0, its least entry is -1; use softmax_sampling"):
        power_sampling(torch.tensor([-1.0]), 1, generator=generator())
