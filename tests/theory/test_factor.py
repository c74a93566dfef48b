import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.theory import (
    AdversarialFlips,
    Estimate,
    NoCorruption,
    ThresholdProblem,
    UniformFlips,
    factor_draw,
    factor_floor,
    factor_lower,
    factor_mean,
    threshold_complexity_distinct,
    top_q_loss,
)


@st.composite
def sizes(draw, largest=15):
    n = draw(st.integers(1, largest))
    s = draw(st.integers(1, n))
    return n, s, draw(st.integers(1, s)), draw(st.integers(0, 2**31))


@settings(max_examples=150, deadline=None)
@given(sizes())
def test_without_corruption_the_factor_is_not_negative(size):
    n, s, q, seed = size
    losses = torch.rand(4, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    value = float(factor_draw(losses, losses, s, q))
    assert value >= -1e-12
    assert float(factor_draw(losses, losses, s, s)) == pytest.approx(0.0, abs=1e-12)  # q = s: L_q = L


@settings(max_examples=150, deadline=None)
@given(sizes(), st.integers(0, 15))
def test_with_corruption_it_is_not_below_the_changed_fraction(size, changed):
    n, s, q, seed = size
    generator = torch.Generator().manual_seed(seed)
    clean = torch.rand(4, n, generator=generator, dtype=torch.float64)
    corrupted = clean.clone()
    changed = min(changed, n)
    corrupted[:, :changed] = torch.rand(4, changed, generator=generator, dtype=torch.float64)
    assert float(factor_draw(clean, corrupted, s, q)) >= factor_floor(1.0, changed / n).value - 1e-12


@settings(max_examples=150, deadline=None)
@given(sizes())
def test_one_sample_moves_a_draw_by_at_most_its_share(size):
    """The bounded difference behind `factor_lower`: (1 + s/q) M / n."""
    n, s, q, seed = size
    generator = torch.Generator().manual_seed(seed)
    clean, corrupted = (torch.rand(4, n, generator=generator, dtype=torch.float64) for _ in range(2))
    other_clean, other_corrupted = clean.clone(), corrupted.clone()
    other_clean[:, 0] = torch.rand(4, generator=generator, dtype=torch.float64)
    other_corrupted[:, 0] = torch.rand(4, generator=generator, dtype=torch.float64)
    change = factor_draw(clean, corrupted, s, q) - factor_draw(other_clean, other_corrupted, s, q)
    assert abs(float(change)) <= (1 + s / q) / n + 1e-12


def flip_above(boundary, width):
    def rule(inputs, targets):
        return torch.where((inputs > boundary) & (inputs <= boundary + width), torch.zeros_like(targets), targets)

    return AdversarialFlips(rule)


def test_an_adversary_reaches_the_floor():
    """Flip (1/2, 1/2 + rho]: the threshold 1/2 + rho has no corrupted errors and risk rho, so Q -> -rho."""
    generator = torch.Generator().manual_seed(0)
    problem, rho, n = ThresholdProblem(), 0.2, 4000
    q = factor_mean(lambda: problem.errors(100, n, flip_above(0.5, rho), generator).factor(16, 4))
    assert q.value == pytest.approx(-rho, abs=0.01)
    assert q.value >= factor_floor(1.0, rho).value - 5 * q.standard_error


def test_the_worst_gap_follows_minus_q_in_both_directions():
    """|E sup gap + Q| <= E sup |E l - L(D)| <= 4 R_n: symmetrisation, both signs."""
    generator = torch.Generator().manual_seed(1)
    for problem, corruption in [
        (ThresholdProblem(noise=0.1), NoCorruption()),
        (ThresholdProblem(noise=0.1), UniformFlips(0.3)),
        (ThresholdProblem(), flip_above(0.5, 0.2)),
    ]:
        table = problem.errors(400, 500, corruption, generator)
        worst = (problem.worst_risk(table) - table.top_q(16, 4)).amax(-1).mean()
        assert abs(float(worst + table.factor(16, 4).mean())) <= 4 * threshold_complexity_distinct(500).value


def test_the_gap_of_one_hypothesis_does_not_follow_q():
    """Counter-example to section 6.3: Q = -1/4 for ever, yet the gap of theta_1 is 0 and theta_1 minimises
    L_q.

    theta_1 loses 1/2 everywhere, before and after g; theta_2 loses 1 on clean samples and 3/4 on corrupted
    ones.
    """
    for n in (10, 1000, 100_000):
        clean = torch.tensor([[0.5], [1.0]]).expand(2, n)
        corrupted = torch.tensor([[0.5], [0.75]]).expand(2, n)
        top = top_q_loss(corrupted, 8, 2)
        assert float(factor_draw(clean, corrupted, 8, 2)) == pytest.approx(-0.25)
        assert int(top.argmin()) == 0
        assert 0.5 - float(top[0]) == pytest.approx(0.0, abs=1e-12)


def test_lower_estimate_holds_as_often_as_it_says():
    generator = torch.Generator().manual_seed(2)
    problem, n, s, q = ThresholdProblem(noise=0.1), 200, 16, 8
    draws = problem.errors(2000, n, UniformFlips(0.2), generator).factor(s, q)
    lower = [factor_lower(float(value), n, s, q, 0.1, 1.0).value for value in draws[:500]]
    assert sum(value <= float(draws.mean()) for value in lower) >= 0.9 * 500
    assert factor_lower(0.0, n, s, q, 0.1, 1.0).side == "lower"


def test_words_and_refusals():
    assert factor_floor(1.0, 0.0) == Estimate(0.0, "lower", note="Q >= 0 without corruption")
    with pytest.raises(ValueError, match="at least 2"):
        factor_mean(lambda: torch.zeros(1))
