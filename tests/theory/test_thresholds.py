import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.theory import (
    factor_draw,
    finite_class_complexity,
    threshold_complexity,
    threshold_complexity_distinct,
    threshold_errors,
    top_q_loss,
)


def loss_matrix(inputs, targets, thresholds, orientations=1):
    """The 0-1 losses (k, n) of 1[x > t], then those of 1[x <= t]."""
    forward = ((inputs[None] > thresholds[:, None]).long() != targets[None]).double()
    return forward if orientations == 1 else torch.cat([forward, 1 - forward])


@st.composite
def samples(draw, largest=9):
    n = draw(st.integers(1, largest))
    column = st.lists(st.integers(0, 5), min_size=n, max_size=n)  # few values: ties
    bits = st.lists(st.integers(0, 1), min_size=n, max_size=n)
    return tuple(torch.tensor(draw(kind)) for kind in (column, bits, column, bits))


@settings(max_examples=80, deadline=None)
@given(samples(), st.sampled_from([1, 2]), st.data())
def test_counts_losses_and_factor_are_those_of_the_full_matrix(sample, orientations, data):
    inputs, targets, moved, flipped = sample
    n = len(inputs)
    s = data.draw(st.integers(1, n))
    q = data.draw(st.integers(1, s))
    table = threshold_errors(inputs.double(), targets, moved.double(), flipped, orientations=orientations)
    clean = loss_matrix(inputs, targets, table.thresholds, orientations)
    corrupted = loss_matrix(moved, flipped, table.thresholds, orientations)
    torch.testing.assert_close(table.risk(), clean.mean(1))
    torch.testing.assert_close(table.top_q(s, q), top_q_loss(corrupted, s, q))
    torch.testing.assert_close(table.factor(s, q), factor_draw(clean, corrupted, s, q))
    everywhere = torch.linspace(-1, 6, 29, dtype=torch.float64)  # no threshold anywhere does better
    every_clean = loss_matrix(inputs, targets, everywhere, orientations)
    every_corrupted = loss_matrix(moved, flipped, everywhere, orientations)
    torch.testing.assert_close(table.factor(s, q), factor_draw(every_clean, every_corrupted, s, q))


@pytest.mark.parametrize("n", [1, 2, 3, 6, 11])
def test_random_walk_formula_is_the_enumeration(n):
    inputs = torch.arange(n).double()
    for labels in (torch.zeros(n), torch.ones(n), torch.arange(n) % 2):
        thresholds = torch.cat([torch.tensor([-1.0]).double(), inputs])
        losses = loss_matrix(inputs, labels.long(), thresholds)
        exact = finite_class_complexity(losses, draws="all").value
        assert threshold_complexity_distinct(n).value == pytest.approx(exact, abs=1e-12)


def test_random_walk_formula_at_a_million():
    value = threshold_complexity_distinct(1_000_000).value
    assert value == pytest.approx(math.sqrt(2 / (math.pi * 1e6)), rel=1e-3)


@pytest.mark.parametrize("orientations", [1, 2])
def test_monte_carlo_complexity_with_ties(orientations):
    """5 standard errors: a right mean leaves them with probability below 1e-6."""
    inputs, targets = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 4, 5]), torch.tensor([0, 1, 0, 0, 1, 1, 0, 1, 1, 1])
    losses = loss_matrix(inputs, targets, torch.arange(-1.0, 6.0), orientations)
    exact = finite_class_complexity(losses, draws="all").value
    rough = threshold_complexity(
        inputs.double(), targets, draws=20_000, generator=torch.Generator().manual_seed(0), orientations=orientations
    )
    assert abs(rough.value - exact) < 5 * rough.standard_error
    assert rough.nature.startswith("Monte Carlo ±")


def test_labels_must_be_bits():
    with pytest.raises(ValueError, match="targets must be 0 or 1"):
        threshold_errors(torch.rand(3), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="orientations"):
        threshold_errors(torch.rand(2), torch.tensor([0, 1]), orientations=3)
