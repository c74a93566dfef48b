import math
import time
from fractions import Fraction

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.theory import (
    ordered_sgd_gradient,
    sample_weights,
    top_q_gradient,
    top_q_limit,
    top_q_loss,
    top_q_loss_by_enumeration,
    top_q_loss_of_counts,
    top_q_weights,
)


@st.composite
def sizes(draw, largest=60):
    n = draw(st.integers(1, largest))
    s = draw(st.integers(1, n))
    return n, s, draw(st.integers(1, s))


def rational(n, s, q):
    """The paper's formula in exact arithmetic."""
    return [
        Fraction(
            sum(math.comb(j - 1, k) * math.comb(n - j, s - k - 1) for k in range(q) if s - k >= 1), math.comb(n, s)
        )
        for j in range(1, n + 1)
    ]


@settings(max_examples=150, deadline=None)
@given(sizes())
def test_weights_are_the_papers_formula(size):
    n, s, q = size
    gamma = top_q_weights(n, s, q)
    exact = torch.tensor([float(value) for value in rational(n, s, q)], dtype=torch.float64)
    torch.testing.assert_close(gamma, exact, rtol=1e-12, atol=0.0)


@settings(max_examples=100, deadline=None)
@given(sizes(3000))
def test_weights_sum_to_q_fall_and_stay_under_s_over_n(size):
    n, s, q = size
    gamma = top_q_weights(n, s, q)
    assert float(gamma.sum()) == pytest.approx(q, rel=1e-12)
    assert float(gamma.max()) <= s / n  # Proposition 2
    assert bool((gamma[1:] <= gamma[:-1] * (1 + 1e-15)).all())
    assert bool((gamma[:q] == s / n).all())  # where Proposition 2 is an equality


def test_weights_known_values():
    expected = torch.tensor([0.5, 0.5, 0.428571, 0.314286, 0.185714, 0.071429, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(top_q_weights(8, 4, 2), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("s", "q"), [(64, 8), (1000, 100), (500_000, 1000), (1_000_000, 7), (2, 1)])
def test_weights_of_a_million_samples(s, q):
    n = 1_000_000
    start = time.process_time()
    gamma = top_q_weights(n, s, q)
    assert time.process_time() - start < 1.0  # measured 0.1 s; processor time, so a busy machine does not matter
    assert float(gamma.sum()) == pytest.approx(q, rel=1e-12)
    assert float(gamma.max()) <= s / n


@pytest.mark.parametrize("j", [1000, 100_000, 150_000, 500_000])
def test_weights_of_a_million_samples_against_integers_and_log_gamma(j):
    n, s, q = 1_000_000, 64, 8
    value = float(top_q_weights(n, s, q)[j - 1])
    count = sum(math.comb(j - 1, k) * math.comb(n - j, s - k - 1) for k in range(q))
    assert value == pytest.approx(float(Fraction(count, math.comb(n, s))), rel=1e-11)

    def log_choose(a, b):
        return math.lgamma(a + 1) - math.lgamma(b + 1) - math.lgamma(a - b + 1)

    by_log_gamma = sum(
        math.exp(log_choose(j - 1, k) + log_choose(n - j, s - k - 1) - log_choose(n, s)) for k in range(q)
    )
    assert value == pytest.approx(by_log_gamma, rel=1e-6)  # log-gamma itself has lost the other digits


@settings(max_examples=60, deadline=None)
@given(sizes(9), st.data())
def test_loss_is_the_mean_over_all_batches(size, data):
    n, s, q = size
    losses = torch.tensor(data.draw(st.lists(st.integers(-3, 3), min_size=n, max_size=n)), dtype=torch.float64)
    assert float(top_q_loss(losses, s, q)) == pytest.approx(top_q_loss_by_enumeration(losses, s, q), abs=1e-12)
    assert float(sample_weights(losses, s, q) @ losses) / q == pytest.approx(float(top_q_loss(losses, s, q)), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(sizes(40), st.integers(0, 2**31))
def test_top_q_loss_is_at_least_the_mean(size, seed):
    n, s, q = size
    losses = torch.rand(3, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    top = top_q_loss(losses, s, q)
    assert bool((top >= losses.mean(1) - 1e-12).all())
    torch.testing.assert_close(top_q_loss(losses, s, s), losses.mean(1))  # equality at q = s
    torch.testing.assert_close(top_q_loss(torch.full_like(losses, 0.3), s, q), torch.full((3,), 0.3).double())


def test_zero_one_losses_need_only_their_count():
    n, s, q = 20, 6, 2
    losses = (torch.arange(n) < torch.arange(n + 1)[:, None]).double()
    torch.testing.assert_close(top_q_loss_of_counts(torch.arange(n + 1), n, s, q), top_q_loss(losses, s, q))


def test_limit_is_where_large_samples_go():
    rate = torch.tensor([0.0, 0.02, 0.3, 0.5, 1.0])
    n, s, q = 1_000_000, 20, 5
    torch.testing.assert_close(
        top_q_loss_of_counts((rate * n).long(), n, s, q), top_q_limit(rate, s, q), rtol=1e-4, atol=1e-9
    )


def test_loss_gradient_is_the_weighted_gradient():
    generator = torch.Generator().manual_seed(0)
    design = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    theta = torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True)
    losses = (design @ theta).square()
    (gradient,) = torch.autograd.grad(top_q_loss(losses, 8, 3), theta)
    per_sample = 2 * (design @ theta.detach())[:, None] * design
    torch.testing.assert_close(gradient, top_q_gradient(losses.detach(), per_sample, 8, 3))


def test_ordered_sgd_gradient_is_unbiased_and_plain_sgd_is_not():
    """Interval: 5 standard errors on 6 coordinates; a right mean leaves it with probability below 4e-6."""
    generator = torch.Generator().manual_seed(1)
    losses = torch.rand(40, generator=generator)
    gradients = torch.randn(40, 6, generator=generator) + losses[:, None]
    mean, error = ordered_sgd_gradient(losses, gradients, 10, 3, draws=40_000, generator=generator)
    assert bool(((mean - top_q_gradient(losses, gradients, 10, 3)).abs() < 5 * error).all())
    assert bool(((mean - gradients.double().mean(0)).abs() > 5 * error).any())


def test_ordered_sgd_breaks_ties_as_the_weights_do():
    generator = torch.Generator().manual_seed(2)
    mean, error = ordered_sgd_gradient(torch.ones(6), torch.eye(6), 3, 1, draws=20_000, generator=generator)
    expected = top_q_gradient(torch.ones(6), torch.eye(6), 3, 1)
    assert bool(((mean - expected).abs() <= 5 * error).all())


@pytest.mark.parametrize(
    ("size", "message"),
    [((5, 6, 1), "s <= n"), ((5, 3, 4), "q <= s"), ((0, 1, 1), "n must be"), ((5, 3, 0), "q must be")],
)
def test_sizes_outside_the_theorem_are_named(size, message):
    with pytest.raises(ValueError, match=message):
        top_q_weights(*size)


def test_enumeration_refuses_what_it_cannot_finish():
    with pytest.raises(ValueError, match="too many to enumerate"):
        top_q_loss_by_enumeration(torch.rand(100), 50, 2)


def test_losses_must_be_finite():
    with pytest.raises(ValueError, match="losses has 1 entries"):
        top_q_loss(torch.tensor([0.0, math.nan]), 1, 1)


def test_least_top_q_loss_is_not_least_risk():
    """Counter-example to section 6.3: without corruption L_q prefers a sure loss of 1/2 to a 0-1 loss of mean 0.4."""
    n = 10_000
    losses = torch.stack([torch.full((n,), 0.5), (torch.arange(n) < 0.4 * n).float()])
    assert int(losses.mean(1).argmin()) == 1
    assert int(top_q_loss(losses, 2, 1).argmin()) == 0


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: top_q_loss_of_counts(torch.tensor(-1), 4, 2, 1), r"errors must be in \[0, 4\]; 1 of 1 are not, .* -1"),
        (lambda: top_q_loss_of_counts(torch.tensor([0, 5]), 4, 2, 1), r"errors must be in \[0, 4\]; 1 of 2 .* 5"),
        (lambda: top_q_loss_of_counts(-1, 4, 2, 1), r"errors must be in \[0, 4\]"),
        (lambda: top_q_loss_of_counts([1, -4], 4, 2, 1), r"errors must be in \[0, 4\]"),
        (lambda: top_q_loss_of_counts(torch.tensor(1.5), 4, 2, 1), "errors must hold integers, got torch.float32"),
        (lambda: top_q_loss_of_counts(torch.tensor([True]), 4, 2, 1), "errors must hold integers, got torch.bool"),
        (lambda: top_q_loss_of_counts("1", 4, 2, 1), "errors must be a tensor, got '1'"),
        (
            lambda: top_q_limit(torch.tensor(1.5), 4, 2),
            r"error_rate must be in \[0, 1\]; 1 of 1 .* 1\.5",
        ),
        (lambda: top_q_limit(torch.tensor([0.5, -0.1]), 4, 2), r"error_rate must be in \[0, 1\]"),
        (lambda: top_q_limit(1.5, 4, 2), r"error_rate must be in \[0, 1\]"),
        (lambda: top_q_limit(torch.tensor(float("nan")), 4, 2), r"error_rate must be in \[0, 1\]"),
        (lambda: top_q_limit(torch.tensor(1), 4, 2), "error_rate must be floating point, got torch.int64"),
        (lambda: top_q_loss(torch.tensor(1.0), 1, 1), "losses must have a last axis of samples, got a number"),
        (lambda: top_q_loss(["a"], 1, 1), "losses must be a tensor, or numbers"),
    ],
)
def test_what_is_no_number_of_errors_and_no_rate(call, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        call()


@pytest.mark.usefixtures("unchecked_shapes")
def test_numbers_and_lists_are_taken() -> None:
    assert float(top_q_loss_of_counts(1, 4, 2, 1)) == float(top_q_loss_of_counts(torch.tensor(1), 4, 2, 1))
    assert top_q_loss_of_counts([0, 4], numpy.int64(4), 2, 1).tolist() == pytest.approx([0, 1])
    assert float(top_q_limit(0.1, 2, 1)) == pytest.approx(0.19)
    assert top_q_limit([0.0, 1.0], 2, 1).tolist() == pytest.approx([0, 1])
    for kind in (list, numpy.array):
        losses = kind([3.0, 1.0, 0.0])
        assert float(top_q_loss(losses, 3, 1)) == 3
        assert sample_weights(losses, 3, 1).tolist() == [1, 0, 0]
        assert top_q_loss_by_enumeration(losses, 3, 1) == 3
