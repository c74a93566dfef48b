"""The proof's steps on small cases, and the bound put together."""

import math

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.theory import Estimate, complexity_deviation, deviation, theorem1, top_q_loss, top_q_weights

EXACT = Estimate(0.0)


@st.composite
def replaced_sample(draw):
    """Losses on D and on D' (one sample replaced), in [0, M], and sizes."""
    n = draw(st.integers(1, 12))
    s = draw(st.integers(1, n))
    q = draw(st.integers(1, s))
    width = draw(st.sampled_from([0.5, 1.0, 7.0]))
    unit = st.floats(0, 1, allow_nan=False)
    losses = torch.tensor(draw(st.lists(unit, min_size=n, max_size=n)), dtype=torch.float64) * width
    other = losses.clone()
    other[draw(st.integers(0, n - 1))] = draw(unit) * width
    return losses, other, s, q, width


@settings(max_examples=300, deadline=None)
@given(replaced_sample())
def test_bounded_difference(case):
    """|L_q(D) - L_q(D')| <= (s/q)(M/n), and sum_j |L_(j)(D) - L_(j)(D')| <= M: it is the replaced sample's change."""
    losses, other, s, q, width = case
    n = len(losses)
    step = abs(float(top_q_loss(losses, s, q) - top_q_loss(other, s, q)))
    assert step <= s / q * width / n + 1e-12
    ordered = (losses.sort(descending=True).values - other.sort(descending=True).values).abs().sum()
    assert float(ordered) <= width + 1e-12
    assert float(ordered) == pytest.approx(float((losses - other).abs().sum()), abs=1e-12)


@pytest.mark.parametrize(("n", "s", "q"), [(8, 4, 2), (5, 5, 1), (30, 7, 7), (9, 1, 1)])
def test_bounded_difference_is_reached(n, s, q):
    """Tightness: all losses 0, one becomes M; it moves at rank 1, where gamma = s/n."""
    losses = torch.zeros(n, dtype=torch.float64)
    other = losses.clone()
    other[0] = 3.0
    assert float(top_q_loss(other, s, q)) == pytest.approx(s / q * 3.0 / n, rel=1e-12)
    assert float(top_q_weights(n, s, q)[0]) == s / n


def test_terms_and_total():
    losses = torch.tensor([0.0, 0.2, 0.4, 1.0])
    bound = theorem1(
        losses,
        s=2,
        q=1,
        delta=0.05,
        loss_range=1.0,
        complexity=Estimate(0.1, standard_error=0.01),
        factor=Estimate(0.02, "lower", 0.03),
        expected=Estimate(0.5, standard_error=0.04),
    )
    assert bound.training.value == pytest.approx(float(top_q_loss(losses, 2, 1)))
    assert bound.deviation.value == pytest.approx(4 * math.sqrt(math.log(40) / 8))
    assert bound.total.value == pytest.approx(bound.training.value + 0.2 + bound.deviation.value - 0.02)
    assert bound.total.standard_error == pytest.approx(math.hypot(0.02, 0.03))
    assert bound.total.side == "upper"
    assert bound.slack.value == pytest.approx(bound.total.value - 0.5)
    rows = bound.rows()
    assert [row["term"] for row in rows][-2:] == ["left-hand side", "slack"]
    assert sum(row["value"] for row in rows[:4]) == pytest.approx(bound.total.value)


@pytest.mark.parametrize(
    ("complexity", "factor", "side", "certificate"),
    [
        ("exact", "exact", "exact", True),
        ("upper", "exact", "upper", True),
        ("exact", "lower", "upper", True),
        ("upper", "lower", "upper", True),
        ("lower", "exact", "lower", False),
        ("exact", "upper", "lower", False),
        ("upper", "upper", "either", False),
        ("lower", "lower", "either", False),
    ],
)
def test_the_bound_says_which_side_its_error_is_on(complexity, factor, side, certificate):
    bound = theorem1(
        torch.zeros(3),
        s=2,
        q=1,
        delta=0.1,
        loss_range=1.0,
        complexity=Estimate(0.1, complexity),
        factor=Estimate(0.1, factor),
    )
    assert bound.total.side == side
    assert bound.is_certificate is certificate
    assert bound.slack is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": 3}, "q <= s"),
        ({"s": 9}, "s <= n"),
        ({"delta": 0.0}, r"delta in \(0, 1\)"),
        ({"delta": 1.0}, r"delta in \(0, 1\)"),
        ({"loss_range": None}, "bounded loss"),
        ({"loss_range": math.inf}, "finite loss_range"),
        ({"loss_range": 0.5}, "contradicted"),
    ],
)
def test_conditions_are_errors_that_name_them(change, message):
    arguments = {"s": 2, "q": 1, "delta": 0.1, "loss_range": 1.0, "complexity": EXACT, "factor": EXACT} | change
    with pytest.raises(ValueError, match=message):
        theorem1(torch.tensor([0.0, 1.0, 0.5]), **arguments)


def test_the_deviation_goes_to_zero_only_if_s_over_q_grows_slower_than_root_n():
    assert deviation(10**6, 16, 8, 0.05, 1.0) < deviation(10**4, 16, 8, 0.05, 1.0) / 9.9
    assert deviation(10**6, 10**6, 1, 0.05, 1.0) > deviation(10**4, 10**4, 1, 0.05, 1.0) > 1
    assert complexity_deviation(50, 0.1, 2.0) == pytest.approx(2 * math.sqrt(math.log(10) / 100))


def test_estimates_refuse_what_is_not_a_number():
    with pytest.raises(ValueError, match="value must be finite"):
        Estimate(math.nan)
    with pytest.raises(ValueError, match="standard_error"):
        Estimate(0.0, standard_error=-1.0)
    assert Estimate(1.0, "upper", 0.5).nature == "upper, Monte Carlo ± 0.5"


@pytest.mark.parametrize(
    ("losses", "loss_range", "largest", "ceiling", "vacuous"),
    [  # M bounds differences: what a loss can be is the least one seen and M, wherever zero is
        ([10.0, 10.5, 10.25, 10.0], 1.0, None, 11.0, False),
        ([-1.0, 0.0, 0.0, 0.0], 1.0, None, 0.0, True),
        ([-5.0, -4.0, -4.0, -4.0], 1.0, None, -4.0, True),
        ([0.0, 1.0, 0.0, 0.0], 1.0, None, 1.0, False),
        ([0.0, 1.0, 1.0, 1.0], 1.0, None, 1.0, True),
        ([1.0, 1.0, 1.0, 1.0], 1.0, None, 2.0, False),
        ([1.0, 1.0, 1.0, 1.0], 1.0, 1.0, 1.0, True),
        ([0.5, 0.5, 0.5, 0.5], 1.0, 0.9, 0.9, True),
        ([100.0, 101.0, 100.0, 100.0], 2.0, None, 102.0, False),
        ([3.0, 3.0, 3.0, 3.0], 0.0, None, 3.0, True),
    ],
)
def test_vacuous_is_above_what_a_loss_can_be(losses, loss_range, largest, ceiling, vacuous) -> None:
    rest = deviation(4, 2, 2, 0.02, loss_range) - loss_range / 2  # the bound is then the mean loss and half of M
    given = {"s": 2, "q": 2, "delta": 0.02, "loss_range": loss_range, "largest": largest}
    bound = theorem1(torch.tensor(losses), **given, complexity=Estimate(0.0), factor=Estimate(rest))
    assert bound.total.value == pytest.approx(sum(losses) / 4 + loss_range / 2)
    assert bound.ceiling == pytest.approx(ceiling)
    assert bound.is_vacuous is (bound.total.value >= ceiling)
    assert bound.is_vacuous is vacuous


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"largest": 0.5}, "largest is 0.5, but a loss of 1 was seen"),
        ({"largest": float("nan")}, "largest must be finite"),
        ({"delta": numpy.float32(1)}, r"needs delta in \(0, 1\)"),
        ({"delta": "0.1"}, r"delta must be a real number, got '0\.1'"),
        ({"loss_range": "1"}, "loss_range must be a real number, got '1'"),
        ({"losses": [[0.0, 1.0]]}, r"losses must have the shape \(n\), got \(1, 2\)"),
        ({"losses": [0.0, float("nan")]}, "losses has 1 entries that are NaN"),
        ({"losses": ["a", "b"]}, "losses must be a tensor, or numbers"),
        ({"s": 2.0}, "s must be an int, got 2.0"),
    ],
)
def test_what_is_given_to_the_theorem(change, words) -> None:
    given = {"losses": [0.0, 1.0], "s": 2, "q": 1, "delta": 0.1, "loss_range": 1.0} | change
    with pytest.raises((ValueError, TypeError), match=words):
        theorem1(given.pop("losses"), **given, complexity=Estimate(0.0), factor=Estimate(0.0))
    right = {"s": numpy.int64(2), "q": numpy.int8(1), "delta": numpy.float32(0.1), "loss_range": numpy.float64(1)}
    bound = theorem1(numpy.array([0, 1]), **right, complexity=Estimate(0.0), factor=Estimate(0.0))
    assert bound.training.value == 1
