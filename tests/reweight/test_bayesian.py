"""Bayesian IRM: its limits, its expectation by quadrature, its gradient."""

import numpy as np
import pytest
import torch

from steelyard.reweight import BayesianIRM, IRMv1
from steelyard.reweight.risks import scale_derivatives
from tests.support.environments import CROSS_ENTROPY, spurious

DATA, _ = spurious(60)
OUTPUTS = DATA.inputs.sum(1, keepdim=True) * torch.tensor([-0.6, 0.6], dtype=torch.float64)  # nearly calibrated


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slope(environment: int, scale: float) -> torch.Tensor:
    """d R_e / d s by autograd on one scalar."""
    s = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    member = DATA.environment == environment
    risk = CROSS_ENTROPY(s * OUTPUTS[member], DATA.targets[member]).mean()
    return torch.autograd.grad(risk, s)[0]


def test_without_spread_it_is_irmv1() -> None:
    ours = BayesianIRM(0.0, generator(), draws=3)(OUTPUTS, DATA, CROSS_ENTROPY)
    torch.testing.assert_close(ours, IRMv1()(OUTPUTS, DATA, CROSS_ENTROPY))


def test_draws_are_taken_at_scales_of_each_environment() -> None:
    noise = torch.randn(4, 2, generator=generator(5))
    expected = sum(float(slope(e, 1 + 0.5 * float(z[e])) ** 2) for z in noise for e in (0, 1)) / 8
    ours = BayesianIRM(0.5, generator(5), draws=4)(OUTPUTS, DATA, CROSS_ENTROPY)
    assert float(ours) == pytest.approx(expected, rel=1e-6)  # the scales are drawn in single precision


def test_many_draws_average_to_the_expectation_over_the_scales() -> None:
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    values = np.array([[float(slope(e, 1 + z) ** 2) for z in nodes] for e in (0, 1)])
    expected = (values @ weights).mean()
    deviation = np.sqrt(((values**2) @ weights).mean())
    ours = BayesianIRM(1.0, generator(), draws=2000)(OUTPUTS, DATA, CROSS_ENTROPY)
    assert float(ours) == pytest.approx(expected, abs=4 * deviation / np.sqrt(2000))
    assert abs(expected - float(IRMv1()(OUTPUTS, DATA, CROSS_ENTROPY))) > 8 * deviation / np.sqrt(2000)


def test_its_gradient_is_right() -> None:
    outputs = OUTPUTS[:8].clone().requires_grad_()
    data = DATA.take(torch.arange(8))
    assert torch.autograd.gradcheck(lambda o: BayesianIRM(0.4, generator(), 3)(o, data, CROSS_ENTROPY), outputs)


def test_scale_derivatives_at_a_scale_of_each_sample() -> None:
    at = torch.linspace(-1, 2, 60, dtype=torch.float64)
    ours = scale_derivatives(OUTPUTS, DATA, CROSS_ENTROPY, at=at)
    up, down = (CROSS_ENTROPY((at + h)[:, None] * OUTPUTS, DATA.targets) for h in (1e-6, -1e-6))
    torch.testing.assert_close(ours, (up - down) / 2e-6, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("options", "words"), [({"spread": -1.0}, "spread must be"), ({"draws": 0}, "draws must be")])
def test_what_is_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BayesianIRM(**{"spread": 0.1, "generator": generator(), **options})  # type: ignore[arg-type]
