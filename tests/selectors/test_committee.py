"""Query by committee, and density weighting."""

from __future__ import annotations

import math
import sys
from collections import Counter

import pytest
import torch

from steelyard.selectors import DegenerateWarning, bald, consensus_kl, density_weighted, entropy, vote_entropy
from tests.selectors.pools import generator, pool


def draws(members: int = 5, n: int = 30, classes: int = 4, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(members, n, classes, generator=generator(), dtype=torch.float64).softmax(2).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vote_entropy_against_a_count(dtype) -> None:
    p = draws(dtype=dtype)
    found = vote_entropy(p)
    assert found.dtype == dtype
    for i in range(p.shape[1]):
        votes = Counter(p[:, i].argmax(1).tolist())
        expected = -sum(count / 5 * math.log(count / 5) for count in votes.values())
        assert float(found[i]) == pytest.approx(expected, abs=1e-6)


def test_consensus_kl_is_the_mean_divergence_from_the_mean() -> None:
    p = draws()
    mean = p.mean(0)
    expected = sum((one * (one / mean).log()).sum(1) for one in p) / len(p)
    torch.testing.assert_close(consensus_kl(p), expected)
    assert torch.equal(consensus_kl(p), bald(p))


@pytest.mark.parametrize("score", [vote_entropy, consensus_kl])
def test_committees_agree_and_refuse(score) -> None:
    p = draws()
    members = torch.randperm(5, generator=generator(2))
    torch.testing.assert_close(score(p[members]), score(p))
    with pytest.warns(DegenerateWarning, match="all 3 members are identical"):
        assert (score(p[:1].expand(3, -1, -1)) == 0).all()
    with pytest.raises(ValueError, match="probabilities has one member; .* at least 2"):
        score(p[:1])


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_density_against_all_pairs(beta, dtype) -> None:
    p, h = pool(40)
    score = entropy(p)
    cosine = torch.nn.functional.cosine_similarity(h[:, None], h[None], dim=2)
    found = density_weighted(score.to(dtype), h.to(dtype), beta=beta)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), score * cosine.mean(1) ** beta, rtol=1e-5, atol=1e-7)
    order = torch.randperm(40, generator=generator(1))
    torch.testing.assert_close(density_weighted(score[order], h[order]), density_weighted(score, h)[order])


@pytest.mark.parametrize("size", [1e-38, 1e30])
def test_density_depends_on_no_scale(size) -> None:
    p, h = pool(20, dtype=torch.float32)
    torch.testing.assert_close(
        density_weighted(entropy(p), h * size), density_weighted(entropy(p), h), rtol=1e-4, atol=0
    )


def test_density_comes_in_pieces(monkeypatch) -> None:
    p, h = pool(20)
    whole = density_weighted(entropy(p), h)
    monkeypatch.setattr(sys.modules["steelyard.selectors.density"], "_ROWS", 3)
    torch.testing.assert_close(density_weighted(entropy(p), h), whole)


def test_density_of_zeros_and_of_what_points_away() -> None:
    h = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])
    torch.testing.assert_close(density_weighted(torch.ones(4), h), torch.tensor([0.25, 0.25, 0.0, 0.0]))


@pytest.mark.usefixtures("unchecked_shapes")
def test_density_refuses() -> None:
    with pytest.raises(ValueError, match="score must be >= 0, its least entry is -1"):
        density_weighted(torch.tensor([-1.0]), torch.ones(1, 2))
    with pytest.raises(ValueError, match="score has 1, embeddings has 2"):
        density_weighted(torch.ones(1), torch.ones(2, 2))
    with pytest.raises(ValueError, match="beta must be finite and >= 0"):
        density_weighted(torch.ones(1), torch.ones(1, 2), beta=-1)
