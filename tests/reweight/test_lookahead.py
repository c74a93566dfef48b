"""The step of SGD that is looked ahead to without being taken, against training again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from steelyard.bilevel import Batch, WeightedLoss
from steelyard.reweight.lookahead import Alignment, LookAhead, SGDLookAhead, look_ahead
from steelyard.reweight.minibatches import divided_by_rows
from tests.support.clean_samples import (
    OBJECTIVE_OF_ROWS,
    OPTIMIZERS,
    differences,
    mean_loss,
    net,
    retrained,
    some,
)
from tests.support.environments import CROSS_ENTROPY

BATCH, CLEAN = some(12, seed=1, flips=0.4), some(20, seed=2)
OUTER = partial(mean_loss, data=CLEAN)
WEIGHT = torch.linspace(0.2, 1.4, 12, dtype=torch.float64)


def groups(model: nn.Sequential) -> list[dict]:
    """Two groups of other settings; the first layer's bias in neither, the last one's frozen."""
    model[-1].bias.requires_grad_(False)
    first = {"params": [model[0].weight], "lr": 0.2, "momentum": 0.5, "dampening": 0.3}
    return [first, {"params": [*model[-1].parameters()], "lr": 0.05, "weight_decay": 0.1}]


SETTINGS: dict[str, Callable[[nn.Sequential], torch.optim.SGD]] = {
    "plain": lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    "momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "dampening": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, dampening=0.4),
    "nesterov": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True),
    "maximize": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, maximize=True),
    "decay": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.3),
    "groups": lambda model: torch.optim.SGD(groups(model)),
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        mean_loss(model, some(16, seed=5)).backward()
        optimizer.step()


def derivative(model: nn.Module, optimizer: torch.optim.Optimizer, weight: torch.Tensor, **options) -> torch.Tensor:
    ahead = look_ahead(model, optimizer, options.get("objective", OBJECTIVE_OF_ROWS))
    assert isinstance(ahead, SGDLookAhead)
    return ahead.of_losses(BATCH, lambda losses: weight, options.get("outer", OUTER))


@pytest.mark.parametrize("options", [{}, {"dropout": 0.5}, {"norm": True}], ids=["plain", "dropout", "batchnorm"])
@pytest.mark.parametrize("steps", [0, 3], ids=["first step", "later"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_derivative_is_that_of_training_again(settings: str, steps: int, options: dict) -> None:
    model = net(**options)
    optimizer = SETTINGS[settings](model)
    train(model, optimizer, steps)
    found = derivative(model, optimizer, WEIGHT)
    expected = differences(lambda weight: retrained(model, optimizer, BATCH, weight, CLEAN), WEIGHT)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_samples_of_weight_zero_have_their_derivative() -> None:
    model = net()
    optimizer = SETTINGS["momentum"](model)
    weight = WEIGHT * (torch.arange(12) % 3 > 0)
    expected = differences(lambda weight: retrained(model, optimizer, BATCH, weight, CLEAN), weight)
    torch.testing.assert_close(derivative(model, optimizer, weight), expected, rtol=1e-6, atol=1e-9)
    nothing = torch.zeros_like(weight)
    expected = differences(lambda weight: retrained(model, optimizer, BATCH, weight, CLEAN), nothing)
    torch.testing.assert_close(derivative(model, optimizer, nothing), expected, rtol=1e-6, atol=1e-9)


def test_a_regulariser_moves_the_parameters_and_no_sample() -> None:
    def squares(model: nn.Module) -> torch.Tensor:
        return 0.15 * sum(p.square().sum() for p in model.parameters())

    model = net()
    decayed = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.3)
    optimizer, regularised = SETTINGS["plain"](model), WeightedLoss(CROSS_ENTROPY, regulariser=squares)
    found = derivative(model, optimizer, WEIGHT, objective=divided_by_rows(regularised))
    expected = differences(lambda weight: retrained(model, decayed, BATCH, weight, CLEAN), WEIGHT)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_a_hook_on_a_parameter_is_part_of_the_step() -> None:
    model = net()
    doubled = torch.optim.SGD(model.parameters(), lr=0.2)
    expected = differences(lambda weight: retrained(model, doubled, BATCH, weight, CLEAN), WEIGHT)
    for p in model.parameters():
        p.register_hook(lambda gradient: 2 * gradient)
    torch.testing.assert_close(derivative(model, SETTINGS["plain"](model), WEIGHT), expected, rtol=1e-6, atol=1e-9)


def test_rates_that_move_and_groups_that_are_added_are_followed() -> None:
    model = net()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9)
    ahead = look_ahead(model, optimizer, OBJECTIVE_OF_ROWS)
    seen = []
    for change in (
        lambda: None,
        lambda: optimizer.param_groups[0].update(lr=0.3),
        lambda: optimizer.add_param_group({"params": list(model[-1].parameters()), "lr": 0.5}),
    ):
        change()
        train(model, optimizer, 1)
        seen.append(ahead.of_losses(BATCH, lambda losses: WEIGHT, OUTER))
        expected = differences(lambda weight: retrained(model, optimizer, BATCH, weight, CLEAN), WEIGHT)
        torch.testing.assert_close(seen[-1], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("bias", [True, False])
def test_in_a_chain_of_layers_both_are_inner_products_of_gradients(bias: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8, bias=bias), nn.ReLU(), nn.Linear(8, 2)).double()
    optimizer = SETTINGS["plain"](model)
    parameters = list(model.parameters())
    losses = CROSS_ENTROPY(model(BATCH.inputs), BATCH.targets)
    rows = [torch.autograd.grad(one, parameters, retain_graph=True) for one in losses]

    def products(slope: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return torch.stack([sum((g * u).sum() for g, u in zip(row, slope, strict=True)) for row in rows])

    here = products(torch.autograd.grad(OUTER(model), parameters))
    there = copy.deepcopy(model)
    with torch.no_grad():
        for p, *slopes in zip(there.parameters(), *rows, strict=True):
            p -= 0.1 * sum(w * g for w, g in zip(WEIGHT, slopes, strict=True)) / 12
    ahead = products(torch.autograd.grad(OUTER(there), list(there.parameters())))
    alignment, stepped = (way(model, optimizer, OBJECTIVE_OF_ROWS) for way in (Alignment, SGDLookAhead))
    for _ in range(3):  # the first call finds out that it is a chain
        torch.testing.assert_close(alignment(BATCH, OUTER), -here / 12, rtol=1e-9, atol=1e-12)
        found = stepped.of_losses(BATCH, lambda losses: WEIGHT, OUTER)
        torch.testing.assert_close(found, -0.1 * ahead / 12, rtol=1e-9, atol=1e-12)


def test_both_ways_to_look_ahead_agree_in_float32() -> None:
    model = net().float()
    batch, clean = (replaced(data, torch.float32) for data in (BATCH, CLEAN))
    optimizer = SETTINGS["momentum"](model)
    weight, outer = WEIGHT.float(), partial(mean_loss, data=clean)
    found = [
        way(model, optimizer, OBJECTIVE_OF_ROWS).of_losses(batch, lambda losses: weight, outer)
        for way in (SGDLookAhead, LookAhead)
    ]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def replaced(data, dtype: torch.dtype):
    return type(data)(data.inputs.to(dtype), data.targets, data.index)


def test_another_optimizer_or_model_takes_the_step() -> None:
    class Own(torch.optim.SGD):
        pass

    model = net()
    for optimizer in (Own(model.parameters(), lr=0.1), OPTIMIZERS["adam"](model.parameters())):
        assert isinstance(look_ahead(model, optimizer, OBJECTIVE_OF_ROWS), LookAhead)
    compiled = torch.compile(model, backend="eager")
    assert isinstance(look_ahead(compiled, SETTINGS["plain"](model), OBJECTIVE_OF_ROWS), LookAhead)


@pytest.mark.parametrize("fails", [False, True])
def test_a_look_beside_leaves_no_trace(fails: bool) -> None:
    model = net(dropout=0.5, norm=True)
    optimizer = SETTINGS["momentum"](model)
    train(model, optimizer, 2)
    steps = []
    optimizer.register_step_post_hook(lambda *_: steps.append(1))

    def state() -> dict:
        gradients = [p.grad for p in model.parameters()]
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "gradients": gradients}
        return copy.deepcopy({**state, "random": torch.get_rng_state()})

    before = state()
    if fails:
        with pytest.raises(FloatingPointError, match="outer is nan"):
            derivative(model, optimizer, WEIGHT, outer=lambda module: OUTER(module) * float("nan"))
    else:
        derivative(model, optimizer, WEIGHT)
    torch.testing.assert_close(state(), before, rtol=0, atol=0)
    assert not steps


def test_a_sparse_gradient_is_refused() -> None:
    model = nn.Sequential(nn.Embedding(5, 2, sparse=True), nn.Flatten(0, 1))
    batch = Batch.of(torch.arange(4), torch.zeros(4))
    objective = divided_by_rows(WeightedLoss(lambda outputs, targets: outputs.view(4, 2).sum(1)))
    ahead = look_ahead(model, torch.optim.SGD(model.parameters(), lr=0.1), objective)
    with pytest.raises(TypeError, match="sparse, which is not supported"):
        ahead.of_losses(batch, torch.ones_like, lambda module: module(batch.inputs).sum())


def test_an_outer_risk_that_reads_the_model_by_another_way_is_refused() -> None:
    model = net()
    weight = model[0].weight
    with pytest.raises(ValueError, match="by another way than the module"):
        derivative(model, SETTINGS["plain"](model), WEIGHT, outer=lambda module: OUTER(module) + weight.sum())
    with pytest.raises(ValueError, match="does not depend on the parameters"):
        derivative(model, SETTINGS["plain"](model), WEIGHT, outer=lambda module: torch.tensor(1.0))
