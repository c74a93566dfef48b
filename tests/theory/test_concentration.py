import itertools

import pytest
import torch

from steelyard import selectors, theory
from steelyard.theory import (
    block_disagreement,
    block_ranks,
    certify,
    disagreement_radius,
    mean_rank_distance,
    proxies_needed,
)

BLOCKS = [1] * 60 + [140]


def test_disagreement_is_the_mean_over_pairs():
    ranks = torch.rand(7, 5, generator=torch.Generator().manual_seed(0))
    pairs = [(ranks[a] - ranks[b]).abs().double() for a, b in itertools.combinations(range(7), 2)]
    torch.testing.assert_close(mean_rank_distance(ranks), torch.stack(pairs).mean(0), rtol=1e-6, atol=1e-7)


def test_blocks_have_the_expectation_that_they_claim():
    """5 standard errors of 4,000 independent pairs, at most 0.35 each."""
    generator = torch.Generator().manual_seed(1)
    ranks = block_ranks([1, 4, 15], 8000, generator)
    assert bool((ranks.sort(1).values == torch.arange(1, 21).double() / 20).all())
    pairs = (ranks[::2] - ranks[1::2]).abs().mean(0)
    torch.testing.assert_close(pairs, block_disagreement([1, 4, 15]), rtol=0, atol=5 * 0.35 / 4000**0.5)


def test_certificate_covers_at_least_as_often_as_it_says():
    """All |D_i - E D_i| <= t in at least 1 - delta of 300 ensembles (in fact in all: the inequality is loose)."""
    generator = torch.Generator().manual_seed(2)
    expected, delta, k = block_disagreement(BLOCKS), 0.1, 20
    t = disagreement_radius(200, k, delta)
    inside = [
        bool(((mean_rank_distance(block_ranks(BLOCKS, k, generator)) - expected).abs() <= t).all()) for _ in range(300)
    ]
    assert sum(inside) >= (1 - delta) * 300


def test_separation_is_certified_once_there_are_enough_proxies():
    generator = torch.Generator().manual_seed(3)
    gap = float(block_disagreement(BLOCKS).max())
    many = proxies_needed(200, gap / 2, 0.05)
    separation = certify(block_ranks(BLOCKS, many, generator), 0.05)
    assert separation.is_certified
    assert bool((separation.high == (block_disagreement(BLOCKS) > 0)).all())
    assert not certify(block_ranks(BLOCKS, 4, generator), 0.05).is_certified


@pytest.mark.parametrize(("n", "gap", "delta"), [(100, 0.2, 0.05), (10, 1.0, 0.5), (10**6, 0.01, 0.001)])
def test_proxies_needed_is_the_least(n, gap, delta):
    k = proxies_needed(n, gap, delta)
    assert 2 * disagreement_radius(n, k, delta) < gap
    assert k == 2 or 2 * disagreement_radius(n, k - 2, delta) >= gap


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_rank_distance(torch.rand(1, 3)), "at least 2 proxies"),
        (lambda: mean_rank_distance(torch.tensor([[1.0, 2.0], [2.0, 1.0]])), "normalised"),
        (lambda: certify(torch.rand(3, 1), 0.1), "at least 2 samples"),
        (lambda: disagreement_radius(5, 1, 0.1), "k must be"),
        (lambda: disagreement_radius(5, 2, 1.0), "delta in"),
        (lambda: proxies_needed(5, 0.0, 0.1), "gap must be"),
    ],
)
def test_conditions_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_two_functions_of_one_name_are_gone() -> None:
    """Losses are for `selectors.rank_disagreement`, which ranks them; ranks for `theory.mean_rank_distance`."""
    losses = torch.rand(5, 30, generator=torch.Generator().manual_seed(0))
    by_losses = selectors.rank_disagreement(losses)
    torch.testing.assert_close(theory.mean_rank_distance(selectors.normalised_ranks(losses)), by_losses)
    assert not hasattr(theory, "rank_disagreement")
    assert not set(theory.__all__) & set(selectors.__all__)


@pytest.mark.parametrize("blocks", [[], [0], [3, -1], [2, 0]])
def test_blocks_without_samples_are_refused(blocks) -> None:
    for call in (lambda: block_disagreement(blocks), lambda: block_ranks(blocks, 3, torch.Generator())):
        with pytest.raises(ValueError, match="blocks"):
            call()
