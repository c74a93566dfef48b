"""Models and heads."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steelyard.experiments.models import HEADS, MLP, Logistic, binary_cross_entropy


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


def test_one_logit_is_the_softmax_of_zero_and_the_logit() -> None:
    logit = torch.randn(20, 1, generator=torch.Generator().manual_seed(0)) * 3
    targets = torch.arange(20) % 2
    both = torch.cat([torch.zeros_like(logit), logit], 1)
    torch.testing.assert_close(binary_cross_entropy(logit, targets), F.cross_entropy(both, targets, reduction="none"))
    assert torch.equal(HEADS["one_logit"].predict(logit), HEADS["softmax"].predict(both))


@pytest.mark.parametrize("head", sorted(HEADS))
def test_losses_are_in_single_precision_under_autocast(head: str) -> None:
    outputs = torch.randn(6, HEADS[head].width(2), generator=torch.Generator().manual_seed(0))
    targets = torch.arange(6) % 2
    low = HEADS[head].loss(outputs.bfloat16(), targets)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, HEADS[head].loss(outputs.bfloat16().float(), targets))
    assert HEADS[head].loss(outputs.double(), targets).dtype == torch.float64


def test_one_logit_refuses_more_classes() -> None:
    with pytest.raises(ValueError, match="two classes.*softmax"):
        MLP(head="one_logit").build((1, 2, 2), 3, seed=0)
    with pytest.raises(ValueError, match="hidden"):
        MLP(hidden=(0,))
