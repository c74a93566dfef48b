"""Distances of two samples against sums written out, their gradients and invariants; the risk over pairs."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from steelyard.bilevel.batch import Batch
from steelyard.experiments.training.alignment import Alignment, mean_and_covariance_distance, mmd

GENERATOR = torch.Generator().manual_seed(0)
ONE = torch.randn(7, 3, generator=GENERATOR, dtype=torch.float64)
TWO = 1.5 * torch.randn(5, 3, generator=GENERATOR, dtype=torch.float64) + 0.4
DISTANCES = {"mmd": mmd, "coral": mean_and_covariance_distance}


def test_mmd_by_loops() -> None:
    def mean_kernel(a: np.ndarray, b: np.ndarray) -> float:
        widths = [10.0**k for k in range(-3, 4)]
        return float(np.mean([sum(np.exp(-g * ((x - y) ** 2).sum()) for g in widths) for x in a for y in b]))

    a, b = ONE.numpy(), TWO.numpy()
    expected = mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b)
    assert float(mmd(ONE, TWO)) == pytest.approx(expected, rel=1e-10)


def test_the_moments_by_numpy() -> None:
    a, b = ONE.numpy(), TWO.numpy()
    means = ((a.mean(0) - b.mean(0)) ** 2).mean()
    covariances = ((np.cov(a.T) - np.cov(b.T)) ** 2).mean()
    assert float(mean_and_covariance_distance(ONE, TWO)) == pytest.approx(means + covariances, rel=1e-10)


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
def test_a_distance_is_not_negative_symmetric_and_zero_for_the_same_sample(distance) -> None:  # type: ignore[no-untyped-def]
    assert float(distance(ONE, TWO)) > 0
    assert float(distance(ONE, TWO)) == pytest.approx(float(distance(TWO, ONE)), rel=1e-12)
    assert float(distance(ONE, ONE[torch.tensor([3, 0, 6, 1, 2, 5, 4])])) == pytest.approx(0, abs=1e-12)
    assert float(distance(ONE, torch.cat([ONE, ONE]))) < float(distance(ONE, TWO)) / 10


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
def test_the_gradient_is_that_of_differences(distance) -> None:  # type: ignore[no-untyped-def]
    assert torch.autograd.gradcheck(distance, (ONE.clone().requires_grad_(), TWO.clone().requires_grad_()))


def test_a_shift_moves_the_means_alone_and_a_scale_the_covariance() -> None:
    assert float(mean_and_covariance_distance(ONE, ONE + 2.0)) == pytest.approx(4.0)
    centred = ONE - ONE.mean(0)
    expected = ((4 - 1) * np.cov(centred.numpy().T)) ** 2
    assert float(mean_and_covariance_distance(centred, 2 * centred)) == pytest.approx(expected.mean())


def samples() -> tuple[torch.Tensor, Batch]:
    outputs = torch.randn(24, 2, generator=torch.Generator().manual_seed(1))
    environment, targets = torch.arange(24) % 3, torch.arange(24) // 12
    return outputs, Batch.of(outputs, targets, environment=environment, group=2 * targets + torch.arange(24) // 6 % 2)


def test_the_risk_is_the_mean_over_pairs_of_environments_or_of_groups_of_one_class() -> None:
    outputs, batch = samples()
    sets = [outputs[batch.environment == e] for e in range(3)]
    expected = np.mean([float(mmd(one, two)) for one, two in combinations(sets, 2)])
    assert float(Alignment(mmd, "environment")(outputs, batch, lambda o, t: o[:, 0])) == pytest.approx(expected)
    groups = [outputs[batch.group == g] for g in range(4)]
    within = (float(mmd(groups[0], groups[1])) + float(mmd(groups[2], groups[3]))) / 2
    assert float(Alignment(mmd, "group")(outputs, batch, lambda o, t: o[:, 0])) == pytest.approx(within)


def test_sets_that_are_too_small_are_left_out_and_no_pair_is_no_penalty() -> None:
    outputs, batch = samples()
    few = batch.take(torch.tensor([0, 3, 6, 1]))  # environments 0, 0, 0, 1
    assert float(Alignment(mmd, "environment")(outputs[:4], few, lambda o, t: o[:, 0])) > 0
    moments = Alignment(mean_and_covariance_distance, "environment", least=2)
    assert float(moments(outputs[:4], few, lambda o, t: o[:, 0])) == 0


def test_what_the_risk_needs_is_said() -> None:
    outputs, batch = samples()
    with pytest.raises(ValueError, match=r"needs group ids, but batch\.group is None"):
        Alignment(mmd, "group")(outputs, Batch.of(outputs, batch.targets), lambda o, t: o[:, 0])
    for stale in (None, outputs[:5]):
        with pytest.raises(ValueError, match="forward pass on this very batch"):
            Alignment(mmd, "environment", lambda stale=stale: stale)(outputs, batch, lambda o, t: o[:, 0])
