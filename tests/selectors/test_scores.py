"""Closed forms of every score of predictions, and what permutations do to them."""

from __future__ import annotations

import math

import pytest
import torch

from steelyard.selectors import (
    DegenerateWarning,
    aum,
    bald,
    deep_gini,
    dropout_entropy,
    dropout_probabilities,
    entropy,
    least_confidence,
    margin,
    mean_confidence,
    variability,
)
from tests.selectors.pools import generator, pool

UNIFORM, CERTAIN, SOME = [0.25] * 4, [0.0, 1.0, 0.0, 0.0], [0.5, 0.25, 0.25, 0.0]


@pytest.mark.parametrize(
    ("score", "uniform", "certain", "some"),
    [
        (least_confidence, 0.75, 0.0, 0.5),
        (margin, 1.0, 0.0, 0.75),
        (entropy, math.log(4), 0.0, 1.5 * math.log(2)),
        (lambda p: entropy(p, base=2), 2.0, 0.0, 1.5),
        (deep_gini, 0.75, 0.0, 1 - 0.375),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uncertainty(score, uniform, certain, some, dtype) -> None:
    found = score(torch.tensor([UNIFORM, CERTAIN, SOME], dtype=dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found, torch.tensor([uniform, certain, some], dtype=dtype))


@pytest.mark.parametrize("score", [least_confidence, margin, entropy, deep_gini])
def test_the_order_of_the_classes_does_not_matter(score) -> None:
    p, _ = pool(40)
    classes = torch.randperm(4, generator=generator(2))
    torch.testing.assert_close(score(p[:, classes]), score(p))


def test_bald_is_the_mutual_information() -> None:
    draws = torch.randn(7, 30, 5, generator=generator(), dtype=torch.float64).softmax(2)

    def h(p):
        return -(p * p.log()).sum(-1)

    torch.testing.assert_close(bald(draws), h(draws.mean(0)) - h(draws).mean(0))
    torch.testing.assert_close(dropout_entropy(draws), h(draws.mean(0)))


def test_bald_of_disagreement_without_doubt() -> None:
    draws = torch.eye(4)[:, None].expand(4, 2, 4)  # every draw is certain of another class
    torch.testing.assert_close(bald(draws), torch.full((2,), math.log(4)))


def test_bald_is_accurate_in_float32_where_draws_nearly_agree() -> None:
    base = torch.randn(1, 50, 4, generator=generator(), dtype=torch.float64)
    draws = (base + 1e-3 * torch.randn(5, 50, 4, generator=generator(1), dtype=torch.float64)).softmax(2)
    exact = bald(draws)  # about 1e-7; the difference of two float32 entropies would be noise
    mean = draws.float().mean(0)
    difference = torch.special.entr(mean).sum(-1) - torch.special.entr(draws.float()).sum(-1).mean(0)
    ours = (bald(draws.float()) - exact).abs() / exact
    theirs = (difference - exact).abs() / exact
    assert float(ours.median()) < 0.01 < float(theirs.median())


@pytest.mark.parametrize("draws", [2, 3, 10])
def test_identical_draws_are_zero_and_say_so(draws) -> None:
    p, _ = pool(20, dtype=torch.float32)
    p[0] = torch.tensor(CERTAIN)
    with pytest.warns(DegenerateWarning, match="a net without dropout"):
        score = bald(p.expand(draws, -1, -1))
    assert (score == 0).all()


def test_a_net_without_dropout_is_degenerate_and_one_with_is_not() -> None:
    source = generator()
    inputs = torch.randn(6, 3, generator=source)
    plain = torch.nn.Linear(3, 2)
    with pytest.warns(DegenerateWarning):
        bald(dropout_probabilities(plain, inputs, 4, seed=0))
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 8), torch.nn.Dropout(), torch.nn.Linear(8, 2))
    net.train()
    modes = [module.training for module in net.modules()]
    state, statistics = torch.get_rng_state(), net[0].running_mean.clone()
    draws = dropout_probabilities(net, inputs, 4, seed=0)
    assert (bald(draws) > 0).any()
    assert torch.equal(draws, dropout_probabilities(net, inputs, 4, seed=0))
    assert not torch.equal(draws, dropout_probabilities(net, inputs, 4, seed=1))
    assert dropout_probabilities(net, inputs, 4, seed=0, chunk=4).shape == draws.shape
    # Nothing global has moved: random state, modes, BatchNorm's statistics.
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [module.training for module in net.modules()]
    assert torch.equal(statistics, net[0].running_mean)


def test_dynamics_by_hand() -> None:
    labels = torch.tensor([0, 2])
    logits = torch.tensor([[[3.0, 1.0, 2.0], [5.0, 0.0, 1.0]], [[1.0, 4.0, 0.0], [0.0, 0.0, 6.0]]])
    torch.testing.assert_close(aum(logits, labels), torch.tensor([(1.0 - 3.0) / 2, (-4.0 + 6.0) / 2]))
    p = torch.tensor([[[0.2, 0.8], [0.5, 0.5]], [[0.6, 0.4], [0.5, 0.5]], [[1.0, 0.0], [0.5, 0.5]]])
    labels = torch.tensor([0, 1])
    torch.testing.assert_close(mean_confidence(p, labels), torch.tensor([0.6, 0.5]))
    torch.testing.assert_close(variability(p, labels), torch.tensor([math.sqrt(0.32 / 3), 0.0]))


def test_aum_is_low_for_a_wrong_label() -> None:
    logits = torch.tensor([[[4.0, 0.0]] * 2] * 3)
    right, wrong = aum(logits, torch.tensor([0, 1])).tolist()
    assert (right, wrong) == (4.0, -4.0)
