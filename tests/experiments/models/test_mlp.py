"""The multilayer perceptron and the linear model."""

import pytest
import torch
from torch import nn

from steelyard.experiments.models import MLP, Logistic


def test_the_published_net() -> None:
    net = MLP(hidden=(390, 390)).build((2, 14, 14), 2, seed=0)
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(392, 390), (390, 390), (390, 1)]
    for layer in linear:
        bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
        assert 0.95 * bound < float(layer.weight.detach().abs().max()) <= bound
        assert not layer.bias.any()
    assert net(torch.zeros(3, 2, 14, 14)).shape == (3, 1)


def test_a_seed_gives_the_same_parameters_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (MLP(hidden=(5,)).build((1, 4, 4), 2, seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one[1].weight, other[1].weight)


def test_logistic_is_linear() -> None:
    model = Logistic(head="softmax").build((2, 3), 4, seed=0)
    x, y = torch.randn(2, 5, 2, 3, generator=torch.Generator().manual_seed(0))
    zero = model(torch.zeros(5, 2, 3))
    torch.testing.assert_close(model(x + y) + zero, model(x) + model(y))
    assert zero.shape == (5, 4)


def test_widths_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden"):
        MLP(hidden=(0,))
