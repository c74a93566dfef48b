"""Masks: the law of the forward pass, the two backward surrogates, the saturated ends."""

import numpy as np
import pytest
import torch
from scipy import stats

from steelyard.reweight import LinearTemperature, Mask

PROBABILITIES = torch.tensor([0.001, 0.02, 0.3, 0.5, 0.77, 0.98, 0.999])
# Seeds are fixed, so these tests either always pass or never do; the stated level is the chance that a correct
# sampler fails at a seed not looked at before.
LEVEL = 1e-6


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("estimator", ["identity", "relaxed"])
@pytest.mark.parametrize("temperature", [0.01, 0.5, 1.0, 30.0])
def test_forward_is_bernoulli_at_any_temperature(estimator, temperature):
    draws, s = 20_000, PROBABILITIES.clone().requires_grad_()
    masks = Mask(estimator, temperature)(s, generator(3), draws=draws).detach()
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    kept = masks.sum(0).double().numpy()
    p = PROBABILITIES.double().numpy()
    chi2 = ((kept - draws * p) ** 2 / (draws * p * (1 - p))).sum()
    assert stats.chi2.sf(chi2, df=len(p)) > LEVEL
    # and the draws of one sample are independent of those of another: the correlations are those of noise
    correlation = np.corrcoef(masks[:, 2:5].numpy().T)[np.triu_indices(3, 1)]
    assert np.abs(correlation).max() < stats.norm.isf(LEVEL / 6) / np.sqrt(draws)


def test_mean_of_the_mask_is_s():
    s = torch.rand(300, generator=generator(1))
    mean = Mask()(s, generator(2), draws=4000).mean(0)
    z = (mean - s) / (s * (1 - s) / 4000).sqrt()
    assert z.abs().max() < stats.norm.isf(LEVEL / 600)  # union bound over the 300 entries


def test_rare_samples_are_not_rounded_away():
    """float32 noise has 2^-24 steps: s = 2^-30 would be drawn 64 times too often."""
    s = torch.full((1_000_000,), 2.0**-30)
    assert Mask()(s, generator(4)).sum() == 0  # 0.001 expected; under float32 noise 0.06


@pytest.mark.parametrize("estimator", ["identity", "relaxed"])
def test_saturated_probabilities(estimator):
    s = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.5], requires_grad=True)
    masks = Mask(estimator, 0.03)(s, generator(), draws=500)
    assert (masks[:, [0, 2]] == 0).all()
    assert (masks[:, [1, 3]] == 1).all()
    (grad,) = torch.autograd.grad(masks.sum(), s)
    assert torch.isfinite(grad).all()


def test_forward_is_the_same_with_and_without_a_gradient_and_for_both_estimators():
    s = torch.rand(1000, generator=generator(5))
    plain = Mask()(s, generator(6), draws=3)
    assert plain.requires_grad is False
    for estimator in ("identity", "relaxed"):
        assert torch.equal(plain, Mask(estimator)(s.clone().requires_grad_(), generator(6), draws=3).detach())


def test_identity_gradient_is_one():
    s = torch.rand(7, generator=generator()).requires_grad_()
    upstream = torch.randn(2, 7)
    (grad,) = torch.autograd.grad(Mask()(s, generator(), draws=2), s, upstream)
    assert torch.equal(grad, upstream.sum(0))


@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0])
def test_relaxed_gradient_against_finite_differences_of_the_relaxed_sample(temperature):
    s = (torch.rand(50, generator=generator(), dtype=torch.float64) * 0.9 + 0.05).requires_grad_()
    (grad,) = torch.autograd.grad(Mask("relaxed", temperature)(s, generator(8)).sum(), s)
    u = torch.rand(50, generator=generator(8), dtype=torch.float64)

    def relaxed(p):
        return torch.sigmoid((torch.logit(p) - torch.logit(u)) / temperature)

    step = 1e-6
    expected = (relaxed(s.detach() + step) - relaxed(s.detach() - step)) / (2 * step)
    torch.testing.assert_close(grad, expected, rtol=1e-6, atol=1e-8)


def test_schedule_of_the_authors():
    schedule = LinearTemperature()
    for t, steps in [(0, 30), (7, 30), (30, 30)]:
        assert schedule(t / steps) == pytest.approx(0.97 * (1 - t / steps) + 0.03)
    s = torch.full((20,), 0.4, dtype=torch.float64, requires_grad=True)

    def gradient(mask, progress):
        return torch.autograd.grad(mask(s, generator(), progress=progress).sum(), s)[0]

    assert torch.equal(gradient(Mask("relaxed"), 1.0), gradient(Mask("relaxed", 0.03), 0.0))


def test_draws_reproducible_and_generator_advances():
    source = generator(9)
    first, second = Mask()(PROBABILITIES, source), Mask()(PROBABILITIES, source)
    again = Mask()(PROBABILITIES, generator(9), draws=2)
    assert torch.equal(torch.stack([first, second]), again)


def test_any_shape_and_empty():
    assert Mask()(torch.rand(3, 4, 2), generator()).shape == (3, 4, 2)
    assert Mask()(torch.empty(0), generator(), draws=2).shape == (2, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Mask()(torch.tensor([0.5, 1.5, 1.2]), generator()), "2 of 3 are not, the first 1.5"),
        (lambda: Mask()(torch.tensor([float("nan")]), generator()), "first nan"),
        (lambda: Mask()(PROBABILITIES, generator(), draws=0), "draws must be >= 1"),
        (lambda: Mask(temperature=0.0), "temperature must be finite and > 0"),
        (lambda: LinearTemperature(end=-1.0), "end must be finite and > 0"),
        (lambda: LinearTemperature()(1.5), "progress"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
