"""Meta-Weight-Net against central differences and a plain implementation."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call

from steelyard.bilevel import Batch
from steelyard.checkpoint import CheckpointError, Journal
from steelyard.reweight import MetaWeightNet, WeightNet
from steelyard.reweight.lookahead import LookAhead
from tests.support.clean_samples import (
    OBJECTIVE,
    OPTIMIZERS,
    batches_of,
    differences,
    mean_loss,
    net,
    retrained,
    some,
    warmed,
)
from tests.support.environments import CROSS_ENTROPY

CLEAN = some(20, seed=2)


def weighted(weight: torch.Tensor, losses: torch.Tensor, normalise: str) -> torch.Tensor:
    """The loss of a batch, by the divisor's definition."""
    return (weight * losses).sum() / (weight.sum() if normalise == "weights" else len(weight))


def plain_meta_weight_net(model, optimizer, weigh, weigh_optimizer, batches, clean, normalise) -> None:
    """The method in a few lines, by double backward; SGD of step 0.1."""
    for batch in batches:
        theta = dict(model.named_parameters())
        losses = CROSS_ENTROPY(functional_call(model, theta, batch.inputs), batch.targets)
        value = weighted(weigh(losses.detach()), losses, normalise)
        slope = torch.autograd.grad(value, list(theta.values()), create_graph=True)
        ahead = {name: p - 0.1 * g for (name, p), g in zip(theta.items(), slope, strict=True)}
        weigh_optimizer.zero_grad()
        CROSS_ENTROPY(functional_call(model, ahead, clean.inputs), clean.targets).mean().backward()
        weigh_optimizer.step()
        optimizer.zero_grad()
        losses = CROSS_ENTROPY(model(batch.inputs), batch.targets)
        weighted(weigh(losses.detach()).detach(), losses, normalise).backward()
        optimizer.step()


def small_weight_net() -> WeightNet:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return WeightNet(5).double()


@pytest.mark.parametrize("normalise", ["weights", "batch"])
def test_meta_weight_net_equals_the_plain_implementation(normalise: str) -> None:
    train, clean = some(60, flips=0.4), some(20, seed=2)
    (ours, theirs), (own, other) = (net(), net()), (small_weight_net(), small_weight_net())
    make = partial(torch.optim.Adam, lr=0.05)
    sgd = OPTIMIZERS["sgd"]
    online = MetaWeightNet(
        ours, sgd(ours.parameters()), OBJECTIVE, clean, net=own, net_optimizer=make, normalise=normalise
    )
    for batch in batches_of(train, 8):
        online.step(batch)
    batches = batches_of(train, 8)
    plain_meta_weight_net(theirs, sgd(theirs.parameters()), other, make(other.parameters()), batches, clean, normalise)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(own.state_dict(), other.state_dict(), rtol=1e-7, atol=1e-9)


class _Smooth(nn.Module):
    """A weight net without kinks, which central differences would have to keep away from."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(4)
            self.first, self.last = nn.Linear(1, 5).double(), nn.Linear(5, 1).double()

    def forward(self, losses: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(losses[:, None]).tanh()).sigmoid()[:, 0]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("options", [{}, {"dropout": 0.5}, {"norm": True}], ids=["plain", "dropout", "batchnorm"])
@pytest.mark.parametrize("normalise", ["weights", "batch"])
def test_meta_gradient_is_that_of_retraining(optimizer: str, options: dict, normalise: str) -> None:
    model, weigh = net(**options), _Smooth()
    made = warmed(optimizer, model)
    batch, clean = some(12, seed=1, flips=0.4), some(20, seed=2)
    online = MetaWeightNet(model, made, OBJECTIVE, clean, net=weigh, normalise=normalise)
    phi = nn.utils.parameters_to_vector(weigh.parameters()).detach()

    def clean_loss(there: torch.Tensor) -> torch.Tensor:
        nn.utils.vector_to_parameters(there, weigh.parameters())
        with torch.no_grad(), torch.random.fork_rng():
            losses = CROSS_ENTROPY(copy.deepcopy(model)(batch.inputs), batch.targets)
            weight = weigh(losses)
            weight = weight / weight.mean() if normalise == "weights" else weight
        return retrained(model, made, batch, weight, clean)

    expected = differences(clean_loss, phi)
    nn.utils.vector_to_parameters(phi, weigh.parameters())
    online.meta_gradient(batch, partial(mean_loss, data=clean))
    found = torch.cat([p.grad.flatten() for p in weigh.parameters()])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_normalised_weights_have_the_mean_one_and_no_scale() -> None:
    batch, model = some(12, seed=1, flips=0.4), net()
    made = warmed("momentum", model)
    found, slopes = [], []
    for scale in (1.0, 0.1):
        weigh = _Times(scale)
        online = MetaWeightNet(model, made, OBJECTIVE, CLEAN, net=weigh, normalise="weights")
        online.meta_gradient(batch, partial(mean_loss, data=CLEAN))
        slopes.append(torch.cat([p.grad.flatten() for p in weigh.smooth.parameters()]))
        found.append(online.weights(batch))
        torch.testing.assert_close(found[-1].mean(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(*slopes)
    torch.testing.assert_close(*found)


class _Times(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.smooth, self.scale = _Smooth(), scale

    def forward(self, losses: torch.Tensor) -> torch.Tensor:
        return self.scale * self.smooth(losses)


def test_weights_that_sum_to_nothing_take_no_step() -> None:
    model = net()
    nothing = nn.Sequential(_Scaled(), nn.ReLU())
    online = MetaWeightNet(model, OPTIMIZERS["sgd"](model.parameters()), OBJECTIVE, CLEAN, net=nothing)
    before = copy.deepcopy(model.state_dict())
    assert not online.step(some(6)).weights.any()
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_another_divisor_is_another_training(tmp_path) -> None:
    journal = partial(Journal, tmp_path / "run.safetensors")
    for normalise, refused in (("weights", False), ("batch", True)):
        model = net()
        sgd = OPTIMIZERS["sgd"](model.parameters())
        online = MetaWeightNet(model, sgd, OBJECTIVE, CLEAN, normalise=normalise)
        with pytest.raises(CheckpointError, match="normalise") if refused else nullcontext():
            online.fit(some(40), epochs=1, batch_size=10, journal=journal())


@pytest.mark.usefixtures("unchecked_shapes")
def test_another_divisor_than_those_two_is_refused() -> None:
    model = net()
    with pytest.raises(ValueError, match="normalise must be"):
        MetaWeightNet(model, OPTIMIZERS["sgd"](model.parameters()), OBJECTIVE, CLEAN, normalise="none")


def test_an_optimizer_whose_rate_moves_is_followed() -> None:
    model = net()
    made = warmed("adamw", model)
    batch, clean = some(12, seed=1, flips=0.4), some(20, seed=2)
    online = MetaWeightNet(model, made, OBJECTIVE, clean, net=small_weight_net())
    look_ahead = LookAhead(model, made, online.objective)
    outer = partial(mean_loss, data=clean)
    found = []
    for rate in (0.01, 0.02):
        made.param_groups[0]["lr"] = rate
        weight = torch.ones(12, dtype=torch.float64)
        found.append(look_ahead(batch, weight, outer))
        expected = differences(lambda weight: retrained(model, made, batch, weight, clean), weight)
        torch.testing.assert_close(found[-1], expected, rtol=1e-6, atol=1e-9)
    assert not torch.allclose(found[0], found[1], rtol=0.1)


@pytest.mark.parametrize(
    ("net_", "said"),
    [
        (nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 1).double()), "one weight a sample"),
        (nn.Threshold(0.0, -1.0), "weights must be >= 0: end it with a sigmoid"),
    ],
)
def test_weight_nets_that_give_no_weights_are_refused(net_: nn.Module, said: str) -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    if isinstance(net_, nn.Threshold):
        net_ = nn.Sequential(_Scaled(), net_)
    online = MetaWeightNet(model, optimizer, OBJECTIVE, CLEAN, net=net_)
    with pytest.raises(ValueError, match=said):
        online.step(some(6))


class _Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(-1.0, dtype=torch.float64))

    def forward(self, losses: torch.Tensor) -> torch.Tensor:
        return self.scale * losses


def test_the_net_works_in_its_own_type_beside_losses_of_another() -> None:
    class Last(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return super().forward(inputs.double())

    class First(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return super().forward(inputs.float())

    model = nn.Sequential(First(4, 8), nn.Tanh(), Last(8, 2).double())
    batch = some(12, seed=1)
    online = MetaWeightNet(model, torch.optim.SGD(model.parameters(), lr=0.1), OBJECTIVE, CLEAN)
    assert float(online.step(batch).weights.mean()) == pytest.approx(1)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_autocast_does_not_round_the_weights(optimizer: str) -> None:
    """The model's sums are rounded there; V of the losses that come of them is not."""
    model, batch = net().float(), some(12, seed=1)
    batch, clean = (Batch.of(data.inputs.float(), data.targets) for data in (batch, CLEAN))
    online = MetaWeightNet(model, OPTIMIZERS[optimizer](model.parameters()), OBJECTIVE, clean)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = CROSS_ENTROPY(model(batch.inputs), batch.targets).detach()
        found = online.weights(batch)
    weight = online.net(losses).detach()
    torch.testing.assert_close(found, 12 * weight / weight.sum(), rtol=1e-5, atol=1e-6)
