"""What every outer risk has in common: a number of outputs and losses, its gradient right, no sample's place in it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from steelyard import reweight
from steelyard.bilevel import Batch
from steelyard.reweight import Risk

SOURCE = torch.Generator().manual_seed(0)
OUTPUTS = torch.randn(12, 3, generator=SOURCE, dtype=torch.float64)
TARGETS = torch.randint(3, (12,), generator=SOURCE)
PLACES = torch.tensor([0, 1, 0, 1, 1, 0, 0, 1, 0, 1, 0, 1])
GROUPS = torch.arange(12) % 3
BATCH = Batch.of(torch.zeros(12, 1), TARGETS, environment=PLACES, group=GROUPS)

RISKS: dict[str, Callable[[], Risk]] = {
    "BayesianIRM": lambda: reweight.BayesianIRM(0.3, torch.Generator().manual_seed(0), draws=4),
    "GroupWorst": lambda: reweight.GroupWorst(),
    "IRMv1": lambda: reweight.IRMv1(),
    "IRMv1 unbiased": lambda: reweight.IRMv1(unbiased=True),
    "Log": lambda: reweight.Log(reweight.MeanRisk()),
    "MeanRisk": lambda: reweight.MeanRisk(),
    "SoftGroupWorst": lambda: reweight.SoftGroupWorst(0.5),
    "Sqrt": lambda: reweight.Sqrt(reweight.VREx()),
    "VREx": lambda: reweight.VREx(),
    "WeightedSum": lambda: reweight.MeanRisk() + 0.5 * reweight.IRMv1(),
}
NEEDS = {
    **dict.fromkeys(("BayesianIRM", "IRMv1", "IRMv1 unbiased", "Sqrt", "VREx", "WeightedSum"), "environment"),
    **dict.fromkeys(("GroupWorst", "SoftGroupWorst"), "group"),
}


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def value(name: str, outputs: Tensor = OUTPUTS, batch: Batch = BATCH) -> Tensor:
    return RISKS[name]()(outputs, batch, loss)


def test_every_risk_is_here() -> None:
    members = {name: getattr(reweight, name) for name in reweight.__all__}
    risks = {name for name, one in members.items() if isinstance(one, type) and issubclass(one, Risk)}
    assert {name.split()[0] for name in RISKS} == risks - {"Risk"}


@pytest.mark.parametrize("name", RISKS)
def test_one_finite_number(name: str) -> None:
    assert value(name).shape == ()
    assert value(name).isfinite()


@pytest.mark.parametrize("name", RISKS)
def test_its_gradient_is_that_of_central_differences(name: str) -> None:
    outputs = OUTPUTS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(name, outputs), outputs)
    for row, column in ((0, 0), (3, 2), (7, 1), (11, 0)):
        step = torch.zeros_like(OUTPUTS)
        step[row, column] = 1e-5
        differences = (value(name, OUTPUTS + step) - value(name, OUTPUTS - step)) / 2e-5
        torch.testing.assert_close(gradient[row, column], differences, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", RISKS)
def test_the_order_of_the_samples_does_not_matter(name: str) -> None:
    if name == "IRMv1 unbiased":
        pytest.skip("it halves the samples by their order")
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(value(name, OUTPUTS[order], BATCH.take(order)), value(name))


@pytest.mark.parametrize("name", RISKS)
def test_samples_that_all_come_twice_change_nothing(name: str) -> None:
    if name == "IRMv1 unbiased":
        pytest.skip("of twice the samples it is another estimate")
    twice = torch.arange(12).repeat(2)
    torch.testing.assert_close(value(name, OUTPUTS[twice], BATCH.take(twice)), value(name))


@pytest.mark.parametrize("name", RISKS)
def test_both_precisions_agree(name: str) -> None:
    rounded = value(name, OUTPUTS.float())
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.double(), value(name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", RISKS)
def test_risks_add_and_scale(name: str) -> None:
    total = 2 * RISKS[name]() + reweight.MeanRisk() * 0.25
    torch.testing.assert_close(total(OUTPUTS, BATCH, loss), 2 * value(name) + 0.25 * value("MeanRisk"))


@pytest.mark.parametrize("name", NEEDS)
def test_labels_that_it_needs_and_lacks_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=NEEDS[name]):
        value(name, batch=Batch.of(torch.zeros(12, 1), TARGETS))


@pytest.mark.parametrize("name", RISKS)
def test_a_loss_that_is_averaged_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="12"):
        RISKS[name]()(OUTPUTS, BATCH, F.cross_entropy)
