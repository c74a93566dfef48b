"""Rank disagreement: by all pairs, and in step with the theory's certificate."""

from __future__ import annotations

import itertools

import pytest
import torch

from steelyard.selectors import certificate, normalised_ranks, rank_disagreement
from steelyard.theory import concentration
from tests.selectors.pools import generator


@pytest.mark.parametrize("models", [2, 3, 8])
def test_agrees_with_all_pairs_and_with_the_theory(models) -> None:
    losses = torch.rand(models, 40, generator=generator(models), dtype=torch.float64)
    ranks = normalised_ranks(losses)
    pairs = list(itertools.combinations(range(models), 2))
    by_pairs = sum((ranks[a] - ranks[b]).abs() for a, b in pairs) / len(pairs)
    found = rank_disagreement(losses)
    torch.testing.assert_close(found, by_pairs, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found, concentration.mean_rank_distance(ranks), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("models", "delta"), [(2, 0.05), (7, 0.2), (400, 0.01)])
def test_certificate_agrees_with_the_theory(models, delta) -> None:
    ranks = concentration.block_ranks([3, 60, 5], models, generator(models))
    theirs = concentration.certify(ranks, delta)
    ours = certificate(rank_disagreement(ranks), models, delta=delta)
    assert torch.equal(ours.keep, theirs.high)
    assert ours.gap == pytest.approx(theirs.gap, rel=1e-12)
    assert ours.radius == pytest.approx(theirs.radius, rel=1e-12)
    assert ours.holds == theirs.is_certified


def test_enough_proxies_certify_what_few_do_not() -> None:
    few = concentration.block_ranks([40, 160], 4, generator())
    many = concentration.block_ranks([40, 160], 2000, generator())
    assert not certificate(rank_disagreement(few), 4).holds
    sure = certificate(rank_disagreement(many), 2000)
    assert sure.holds
    assert sure.keep.tolist() == [False] * 40 + [True] * 160


def test_ranks_with_ties() -> None:
    ranks = normalised_ranks(torch.tensor([[2.0, 2.0, 1.0, 5.0], [0.0, 0.0, 0.0, 0.0]]))
    assert ranks.tolist() == [[0.625, 0.625, 0.25, 1.0], [0.625] * 4]
    assert float(rank_disagreement(torch.ones(3, 5)).abs().max()) == 0  # no order, no disagreement


def test_only_ranks_count() -> None:
    losses = torch.rand(5, 30, generator=generator(), dtype=torch.float64)
    rows = torch.randperm(30, generator=generator(1))
    scale = torch.arange(1, 6, dtype=torch.float64)[:, None]
    torch.testing.assert_close(rank_disagreement(torch.expm1(scale * losses)), rank_disagreement(losses))
    torch.testing.assert_close(rank_disagreement(losses[:, rows]), rank_disagreement(losses)[rows])
    torch.testing.assert_close(rank_disagreement(losses.flip(0)), rank_disagreement(losses))


def test_bulk_corruption_is_ranked_last() -> None:
    # Corrupted: a large loss for every proxy. Boundary: any loss. So corruption has the low disagreement.
    source = generator(2)
    boundary, corrupted = torch.rand(20, 50, generator=source), 5 + 0.01 * torch.rand(20, 10, generator=source)
    score = rank_disagreement(torch.cat([boundary, corrupted], 1))
    assert score[:50].min() > score[50:].max()
