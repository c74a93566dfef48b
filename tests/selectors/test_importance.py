"""Importance sampling is unbiased, and what DR-IS filters is not drawn."""

from __future__ import annotations

import torch
from scipy import stats

from steelyard.selectors import importance_draws, importance_probabilities
from tests.selectors.pools import generator


def test_probabilities_by_hand() -> None:
    g, d = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 0.25, 0.0])
    torch.testing.assert_close(importance_probabilities(g), torch.tensor([1.0, 2.0, 3.0]).double() / 6)
    torch.testing.assert_close(importance_probabilities(g, d), torch.tensor([0.5, 0.5, 0.0]).double())


def test_draws_follow_the_probabilities_and_weights_invert_them() -> None:
    p = importance_probabilities(torch.tensor([1.0, 2.0, 0.0, 5.0]))
    sample = importance_draws(p, 4000, generator=generator())
    counts = torch.bincount(sample.index, minlength=4)
    assert counts[2] == 0
    seen = p > 0
    # Fixed seed; under other seeds this fails with probability 1e-6.
    assert stats.chisquare(counts[seen].numpy(), (p[seen] * 4000).numpy()).pvalue > 1e-6
    torch.testing.assert_close(sample.weight, 1 / (4 * p[sample.index]))


def test_the_weighted_mean_is_unbiased_exactly() -> None:
    p = importance_probabilities(torch.rand(9, generator=generator()) + 0.1)
    f = torch.randn(9, generator=generator(1), dtype=torch.float64)
    torch.testing.assert_close((p * (1 / (9 * p)) * f).sum(), f.mean())
    # And the variance is 0 where P is in proportion to |f|, as the theory of importance sampling has it.
    sample = importance_draws(importance_probabilities(f.abs()), 50, generator=generator(2))
    estimate = sample.weight * f.abs()[sample.index]
    torch.testing.assert_close(estimate, f.abs().mean().expand(50))
