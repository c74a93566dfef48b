import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.theory import (
    Estimate,
    complexity,
    complexity_deviation,
    contracted,
    finite_class_complexity,
    linear_ball_bounds,
    linear_ball_complexity,
)


def by_hand(losses):
    total = 0.0
    n = losses.shape[1]
    for signs in itertools.product((-1.0, 1.0), repeat=n):
        total += max(sum(x * y for x, y in zip(signs, row, strict=True)) for row in losses.tolist())
    return total / 2**n / n


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 2**31))
def test_enumeration_is_the_definition(m, n, seed):
    losses = torch.rand(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    estimate = finite_class_complexity(losses, draws="all")
    assert estimate.value == pytest.approx(by_hand(losses), abs=1e-12)
    assert estimate.nature == "exact"
    assert estimate.value >= -1e-15


def test_a_single_hypothesis_has_no_complexity():
    assert finite_class_complexity(torch.rand(1, 9), draws="all").value == 0.0


def test_all_sign_patterns_reach_half_the_range():
    """Tightness: a class that fits every labelling of n samples has R^_n = 1/2 for a loss in {0, 1}."""
    n = 8
    losses = torch.tensor(list(itertools.product((0.0, 1.0), repeat=n)))
    assert finite_class_complexity(losses, draws="all").value == pytest.approx(0.5)


def test_monte_carlo_agrees_with_enumeration():
    """5 standard errors: a right mean leaves them with probability below 1e-6."""
    losses = torch.rand(20, 14, generator=torch.Generator().manual_seed(3))
    exact = finite_class_complexity(losses, draws="all")
    rough = finite_class_complexity(losses, draws=20_000, generator=torch.Generator().manual_seed(4))
    assert rough.standard_error > 0
    assert abs(rough.value - exact.value) < 5 * rough.standard_error


def test_complexity_is_near_its_mean_as_often_as_mcdiarmid_says():
    """R_n <= R^_n + deviation in at least 1 - delta of the samples; R_n is the mean over 4,000 of them."""
    generator = torch.Generator().manual_seed(5)
    n, delta, thresholds = 10, 0.1, torch.linspace(0, 1, 7)
    values = []
    for _ in range(300):
        points, labels = torch.rand(n, generator=generator), torch.rand(n, generator=generator) < 0.5
        losses = ((points > thresholds[:, None]) != labels).double()
        values.append(finite_class_complexity(losses, draws="all").value)
    sample = torch.tensor(values)
    spread = complexity_deviation(n, delta, 1.0)
    assert float((sample.mean() <= sample + spread).double().mean()) >= 1 - delta
    # one replaced sample moves R^_n by at most M/n
    points, labels = torch.rand(n, generator=generator), torch.rand(n, generator=generator) < 0.5
    losses = ((points > thresholds[:, None]) != labels).double()
    replaced = losses.clone()
    replaced[:, 0] = 1 - replaced[:, 0]
    change = finite_class_complexity(losses, draws="all").value - finite_class_complexity(replaced, draws="all").value
    assert abs(change) <= 1 / n + 1e-12


@pytest.mark.parametrize("norm", [1.0, 1.5, 2.0, 4.0, math.inf])
def test_linear_ball_supremum_is_attained(norm):
    """For each draw of signs the dual norm is the supremum: no vector of the ball beats it, and one reaches it."""
    generator = torch.Generator().manual_seed(6)
    inputs, radius = torch.randn(1, 3, generator=generator, dtype=torch.float64), 2.0
    value = linear_ball_complexity(inputs, radius, draws="all", norm=norm).value  # n = 1: radius ||x||_dual
    vectors = torch.randn(200_000, 3, generator=generator, dtype=torch.float64)
    vectors *= radius / torch.linalg.vector_norm(vectors, ord=norm, dim=1, keepdim=True)
    best = float((vectors @ inputs[0]).max())
    corner = radius * float(inputs.abs().max()) if norm == 1.0 else best
    assert best <= value + 1e-12
    assert max(best, corner) == pytest.approx(value, rel=2e-2)


def test_linear_ball_lies_between_its_closed_forms_and_reaches_both():
    generator = torch.Generator().manual_seed(7)
    for inputs in torch.randn(20, 10, 3, generator=generator):
        lower, upper = linear_ball_bounds(inputs, 1.5)
        exact = linear_ball_complexity(inputs, 1.5, draws="all").value
        assert lower.value <= exact <= upper.value
        assert (lower.side, upper.side) == ("lower", "upper")
    orthogonal = torch.eye(6)
    assert linear_ball_complexity(orthogonal, 1.0, draws="all").value == pytest.approx(
        linear_ball_bounds(orthogonal, 1.0)[1].value
    )
    twins = torch.ones(2, 1)
    assert linear_ball_complexity(twins, 1.0, draws="all").value == pytest.approx(
        linear_ball_bounds(twins, 1.0)[0].value
    )


def test_contraction_is_above_the_loss_class():
    """Hinge losses of a grid of linear functions: R^_n of the losses is below that of the functions (Lipschitz 1)."""
    generator = torch.Generator().manual_seed(8)
    inputs, labels = torch.randn(9, 2, generator=generator), torch.randint(0, 2, (9,), generator=generator) * 2.0 - 1
    angles = torch.linspace(0, 2 * math.pi, 50)
    outputs = torch.stack([angles.cos(), angles.sin()], dim=1) @ inputs.T
    losses = (1 - labels * outputs).clamp_min(0)
    upper = contracted(finite_class_complexity(outputs, draws="all"), 1.0)
    assert upper.side == "upper"
    assert finite_class_complexity(losses, draws="all").value <= upper.value
    assert contracted(Estimate(1.0, "lower"), 1.0).side == "either"


def test_requests_that_cannot_be_met_are_refused():
    with pytest.raises(ValueError, match="n = 30 > 22"):
        finite_class_complexity(torch.rand(2, 30), draws="all")
    with pytest.raises(ValueError, match="generator is needed"):
        finite_class_complexity(torch.rand(2, 30), draws=10)
    with pytest.raises(ValueError, match="norm must be >= 1"):
        linear_ball_complexity(torch.rand(2, 3), 1.0, draws="all", norm=0.5)


def test_many_samples_are_read_in_columns(monkeypatch) -> None:
    """The same number, with other signs, from pieces of columns; also of losses of another type."""
    losses = torch.rand(4, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = finite_class_complexity(losses, draws=4000, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(complexity, "_WIDE", 100)
    monkeypatch.setattr(complexity, "_SIGNS", 4000 * 37)
    for one in (losses, losses.float(), (losses * 100).byte()):
        size = 100 if one.dtype == torch.uint8 else 1
        pieces = finite_class_complexity(one, draws=4000, generator=torch.Generator().manual_seed(1))
        error = (whole.standard_error**2 + (pieces.standard_error / size) ** 2) ** 0.5
        assert pieces.value / size == pytest.approx(whole.value, abs=4 * error + 0.01 * whole.value)
    with pytest.raises(ValueError, match="generator is needed"):
        finite_class_complexity(losses, draws=10)
