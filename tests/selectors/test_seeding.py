"""k-means++, BADGE and LHD draw what they say they draw."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from scipy import stats

from steelyard.selectors import badge, kmeans_plus_plus, lhd, seeding, state_difference
from steelyard.selectors.badge import residual
from tests.selectors.pools import generator, gradient_embeddings, pool, sequence_probabilities

DRAWS = 1500
FALSE_ALARM = 1e-6  # of the chi-square test, were the seeds not fixed; its statistic is what the test bounds


def p_value(counts: Counter, expected: dict) -> float:
    """Pearson's chi-square, cells that expect fewer than 5 pooled into one; 0 where the impossible happened."""
    if set(counts) - set(expected):
        return 0.0
    total = sum(counts.values())
    large = [key for key, probability in expected.items() if probability * total >= 5]
    observed = [counts[key] for key in large] + [total - sum(counts[key] for key in large)]
    mean = [expected[key] * total for key in large]
    mean.append(max(total - sum(mean), 1e-9))
    if observed[-1] == 0 and mean[-1] < 1e-6:
        observed, mean = observed[:-1], mean[:-1]
    statistic = sum((o - m) ** 2 / m for o, m in zip(observed, mean, strict=True))
    return float(stats.chi2.sf(statistic, len(observed) - 1))


@pytest.mark.parametrize("proposals", [2, 256])  # many rounds a call, or one
def test_kmeans_draws_follow_d_squared(monkeypatch, proposals) -> None:
    monkeypatch.setattr(seeding, "_PROPOSALS", proposals)
    # With a duplicate, and a cluster, so that the second centre changes the third's distribution a lot.
    vectors = torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 0.0], [3.2, 0.4], [0.0, 2.0]])
    source = generator(2)
    counts = Counter(tuple(kmeans_plus_plus(vectors, 4, generator=source).tolist()) for _ in range(DRAWS))
    assert p_value(counts, sequence_probabilities(vectors, None, 4)) > FALSE_ALARM
    assert p_value(counts, sequence_probabilities(vectors, None, 4, stale=True)) < FALSE_ALARM


def test_badge_draws_follow_d_squared() -> None:
    p, h = pool(6, classes=3, features=2, seed=3, dtype=torch.float32)
    vectors = gradient_embeddings(p, h)
    start = int(vectors.square().sum(1).argmax())
    source = generator(3)
    counts = Counter(tuple(badge(p, h, 3, generator=source).tolist()) for _ in range(DRAWS))
    assert p_value(counts, sequence_probabilities(vectors, start, 3)) > FALSE_ALARM
    assert p_value(counts, sequence_probabilities(vectors, start, 3, stale=True)) < FALSE_ALARM


def test_lhd_draws_follow_d_squared() -> None:
    source = generator(4)
    logits, ema = torch.randn(2, 5, 3, generator=source).unbind()
    hidden, ema_hidden = torch.randn(2, 5, 2, generator=source).unbind()
    vectors = state_difference(logits, ema, hidden, ema_hidden)
    start = int(vectors.square().sum(1).argmax())
    counts = Counter(tuple(lhd(logits, ema, hidden, ema_hidden, 3, generator=source).tolist()) for _ in range(DRAWS))
    assert p_value(counts, sequence_probabilities(vectors, start, 3)) > FALSE_ALARM


def test_duplicates_come_last() -> None:
    distinct = torch.randn(8, 3, generator=generator(5))
    embeddings = distinct.repeat(4, 1)
    picked = kmeans_plus_plus(embeddings, 20, generator=generator(6))
    assert sorted((picked[:8] % 8).tolist()) == list(range(8))
    assert picked.unique().numel() == 20


def test_all_zero_embeddings_are_drawn_uniformly() -> None:
    p = torch.tensor([[1.0, 0.0]]).repeat(5, 1)
    source = generator(7)
    counts = Counter(tuple(badge(p, torch.zeros(5, 2), 2, generator=source).tolist()) for _ in range(600))
    assert set(counts) == {(0, i) for i in range(1, 5)}  # the largest norm is a tie: index 0
    assert p_value(counts, dict.fromkeys(counts, 0.25)) > FALSE_ALARM


def test_whole_pool_is_a_permutation() -> None:
    p, h = pool(300)
    assert sorted(badge(p, h, 300, generator=generator()).tolist()) == list(range(300))


def test_many_blank_samples_cost_one_pick() -> None:
    # Noisy-Blank: most of the pool is one point. k-means++ takes it once at most, uncertainty would take nothing else.
    _, h = pool(1000, dtype=torch.float32)
    h[200:] = h[200]
    picked = kmeans_plus_plus(h, 150, generator=generator(8))
    assert int((picked >= 200).sum()) <= 1


def test_confident_predictions_keep_their_gradient() -> None:
    # In float32, p - 1 of the likeliest class is 0 here, or a whole 6e-8.
    q = torch.tensor([1e-9, 3e-9, 4e-8])
    p = torch.stack([1 - q, q], dim=1)
    torch.testing.assert_close(residual(p), torch.stack([-q, q], dim=1), rtol=1e-6, atol=0)
    assert badge(p, torch.eye(3), 1, generator=generator()).tolist() == [2]


def test_first_centre_and_permutations() -> None:
    _, h = pool(50)
    order = torch.randperm(50, generator=generator(9))
    first = kmeans_plus_plus(h, 1, generator=generator(), first="largest")
    assert int(first) == int(h.norm(dim=1).argmax())
    assert int(order[kmeans_plus_plus(h[order], 1, generator=generator(), first="largest")]) == int(first)


def test_state_difference_by_hand() -> None:
    main, ema = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    h_main, h_ema = torch.tensor([[1.0], [2.0]]), torch.tensor([[4.0], [0.0]])
    loss = -torch.log_softmax(torch.stack([main, ema]), 2)
    by_ema = state_difference(main, ema, h_main, h_ema)  # guesses of the average: 1, 0
    torch.testing.assert_close(by_ema[0, 0], (loss[1, 0, 1] - loss[0, 0, 1]).abs() * 3)
    torch.testing.assert_close(by_ema[1, 0], (loss[1, 1, 0] - loss[0, 1, 0]).abs() * -2)
    known = state_difference(main, ema, h_main, h_ema, labels=torch.tensor([0, 0]))
    torch.testing.assert_close(known[0, 0], (loss[1, 0, 0] - loss[0, 0, 0]).abs() * 3)
    assert (state_difference(main, main, h_main, h_ema) == 0).all()
