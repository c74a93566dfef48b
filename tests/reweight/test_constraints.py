"""The constraint set and the budget schedule."""

from itertools import pairwise

import pytest
import torch

from steelyard.reweight import ConstraintSet, CubicBudget


def test_cubic_budget_of_the_authors():
    budget = CubicBudget(50_000, 15_000)
    values = [budget(t / 100) for t in range(101)]
    assert values[:17] == [50_000.0] * 17
    assert values[60:] == [15_000.0] * 41
    assert all(one >= two for one, two in pairwise(values))
    for t in (20, 38, 59):  # target + (start - target) (1 - (p - p0) / (p1 - p0))^3
        assert values[t] == pytest.approx(15_000 + 35_000 * (1 - (t / 100 - 0.16) / 0.44) ** 3)


def test_projections_follow_the_budget():
    constraints = ConstraintSet(CubicBudget(8, 2))
    s = torch.linspace(-0.5, 1.5, 10)
    assert constraints.project_probabilities(s, 0.0).sum() == pytest.approx(8)
    assert constraints.project_probabilities(s).sum() == pytest.approx(2)
    loose = ConstraintSet(8, equality=False)
    assert torch.equal(loose.project_probabilities(s), s.clamp(0, 1))


@pytest.mark.parametrize(("p", "radius"), [(1, 16.0), (2, 4.0)])
def test_default_radius_is_the_norm_of_the_start(p, radius):
    constraints = ConstraintSet(1, p=p)
    assert torch.equal(constraints.project_weights(torch.ones(16)), torch.ones(16))
    moved = constraints.project_weights(torch.arange(16.0))
    assert torch.linalg.vector_norm(moved, ord=p).item() == pytest.approx(radius)
    assert torch.linalg.vector_norm(ConstraintSet(1, radius=1.0, p=p).project_weights(moved), ord=p) == pytest.approx(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ConstraintSet(-1), "budget must be"),
        (lambda: ConstraintSet(1, radius=-1.0), "radius must be"),
        (lambda: ConstraintSet(1, p=3), "p must be one of"),
        (lambda: CubicBudget(1, -1), "target must be"),
        (lambda: CubicBudget(1, 1, ramp_start=0.5, ramp_end=0.5), "ramp_end must be"),
        (lambda: CubicBudget(1, 1)(1.2), "progress must be"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
