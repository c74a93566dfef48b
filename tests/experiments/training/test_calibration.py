"""Intervals and calibration against brute force and scipy."""

from functools import partial

import pytest
import torch
from scipy.stats import binom, binomtest

from steelyard.experiments.training.calibration import binomial_interval, calibration_error, confidence


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(("right", "count"), [(0, 1), (0, 56), (1, 56), (28, 56), (56, 56), (640, 642)])
def test_intervals_are_wilsons(right: int, count: int, level: float) -> None:
    peer = binomtest(right, count).proportion_ci(level, method="wilson")
    assert binomial_interval(right, count, level) == pytest.approx((peer.low, peer.high), abs=1e-12)


def test_the_intervals_cover() -> None:
    """Exact coverage, averaged over shares: Wilson's interval holds its level on average, not for each share."""
    shares = torch.linspace(0.05, 0.95, 19).tolist()
    covered = [
        sum(binom.pmf(k, 50, p) for k in range(51) if (i := binomial_interval(k, 50))[0] <= p <= i[1]) for p in shares
    ]
    assert sum(covered) / len(covered) == pytest.approx(0.95, abs=0.01)
    assert min(covered) > 0.9


@pytest.mark.parametrize("call", [partial(binomial_interval, 3, 2), partial(binomial_interval, 1, 2, 1.0)])
def test_impossible_intervals_are_refused(call: partial) -> None:
    with pytest.raises(ValueError, match="must be"):
        call()


def test_confidence_of_one_logit_and_of_two_agree() -> None:
    logit = torch.tensor([[-2.0], [0.5], [9.0]])
    torch.testing.assert_close(confidence(logit), confidence(torch.cat([torch.zeros(3, 1), logit], 1)))


def test_calibration_error_by_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    probability, right = torch.rand(300, generator=generator), torch.rand(300, generator=generator) < 0.6
    probability[:2] = torch.tensor([0.0, 1.0])
    total = 0.0
    for k in range(10):
        low, high = k / 10, (k + 1) / 10
        member = (probability > low) & (probability <= high) if k else probability <= high
        if member.any():
            total += int(member.sum()) * abs(float(right[member].double().mean() - probability[member].double().mean()))
    assert calibration_error(probability, right, bins=10) == pytest.approx(total / 300, abs=1e-6)


def test_a_calibrated_model_has_no_error() -> None:
    probability = torch.full((10,), 0.7)
    assert calibration_error(probability, torch.arange(10) < 7) == pytest.approx(0.0, abs=1e-7)
    assert calibration_error(probability, torch.arange(10) < 3) == pytest.approx(0.4, abs=1e-7)
