import math

import pytest
import torch
from torch import nn

from steelyard.theory import (
    contracted,
    finite_class_complexity,
    golowich_bound,
    linear_ball_complexity,
    network_complexity_lower,
)


def seeded(layers, seed=0):
    """Parameters from a generator, so that no test depends on the global one."""
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    return network


def test_bound_is_the_papers_formula_without_biases():
    network = seeded([nn.Flatten(), nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 1, bias=False)])
    norms = [float(p.detach().norm()) for p in network.parameters()]
    expected = 2.5 * (math.sqrt(2 * math.log(2) * 2) + 1) * math.prod(norms) / math.sqrt(64)
    estimate = golowich_bound(network, 2.5, 64)
    assert estimate.value == pytest.approx(expected, rel=1e-6)
    assert estimate.side == "upper"


def test_biases_are_one_more_column():
    """The bound of a net with biases is that of the linear net on (x, 1) that computes the same function."""
    network = seeded([nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.LeakyReLU(0.1), nn.Linear(2, 1)])
    widened = []
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    for place, layer in enumerate(linear):
        matrix = torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach()
        if place < len(linear) - 1:
            matrix = torch.cat([matrix, torch.eye(matrix.shape[1])[-1:]])
        plain = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
        plain.weight.data = matrix
        widened.append(plain)
    same = nn.Sequential(widened[0], nn.ReLU(), widened[1], nn.LeakyReLU(0.1), widened[2])
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(network(x), same(torch.cat([x, torch.ones(5, 1)], dim=1)))
    assert golowich_bound(network, 2.0, 10).value == pytest.approx(
        golowich_bound(same, math.sqrt(5.0), 10).value, rel=1e-6
    )


def test_bound_is_above_the_exact_complexity_of_one_layer():
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(2))
    layer = nn.Linear(3, 1, bias=False)
    exact = linear_ball_complexity(x, float(layer.weight.detach().norm()), draws="all").value
    assert exact <= golowich_bound(layer, float(x.norm(dim=1).max()), 12).value


def test_lower_estimate_is_below_exact_and_upper_and_near_the_exact():
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(3))
    layer = nn.Linear(3, 1, bias=False)
    caps = {"weight": 2.0}
    exact = linear_ball_complexity(x, 2.0, draws="all").value
    lower = network_complexity_lower(
        layer,
        x,
        torch.zeros(12),
        lambda outputs, targets: outputs.squeeze(1),
        draws=200,
        steps=100,
        caps=caps,
        generator=torch.Generator().manual_seed(4),
    )
    assert lower.side == "lower"
    assert lower.value <= exact + 5 * lower.standard_error
    assert lower.value >= 0.9 * exact - 5 * lower.standard_error


def test_both_sides_of_a_deep_net():
    network = seeded([nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)])
    before = [p.clone() for p in network.parameters()]
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(5))
    y = (x[:, 0] > 0).float() * 2 - 1

    def ramp(outputs, targets):
        return (0.5 - outputs.squeeze(1) * targets).clamp(0, 1)

    lower = network_complexity_lower(
        network, x, y, ramp, draws=20, steps=60, generator=torch.Generator().manual_seed(6)
    )
    upper = contracted(golowich_bound(network, float(x.norm(dim=1).max()), 20), 1.0)
    assert 0 < lower.value < upper.value
    assert lower.value <= 0.5 + 1e-6  # a loss in [0, 1] cannot have more
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert network.training


def test_printed_inequality_fails_for_the_zero_one_loss():
    """Section 6.3 applies the bound for f to R^_n of the losses. f = w x with |w| <= e: as e -> 0 the bound
    goes to 0, while the 0-1 losses of sign(w x) keep R^_n = E|sum of signs| / 2n > 0."""
    n = 16
    x = torch.ones(n, 1)
    labels = torch.arange(n) % 2
    losses = torch.stack([(labels == 0), (labels == 1)]).double()  # of w > 0 and of w < 0
    exact = finite_class_complexity(losses, draws="all").value
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1e-3)
    printed = golowich_bound(layer, float(x.norm(dim=1).max()), n).value
    assert printed < 0.01 * exact


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)], r"layer '1' \(Tanh\) is not covered"),
        ([nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), nn.Linear(2, 1)], r"layer '0.1' \(BatchNorm1d\)"),
        ([nn.Conv2d(1, 1, 3), nn.Flatten(), nn.Linear(4, 1)], r"layer '0' \(Conv2d\)"),
        ([nn.Linear(2, 2), nn.LeakyReLU(1.5), nn.Linear(2, 1)], r"layer '1' \(LeakyReLU\)"),
        ([nn.Linear(2, 3)], "layer '0' has 3 outputs"),
        ([nn.Linear(2, 1), nn.ReLU()], "layer '1' follows the last"),
        ([nn.ReLU()], "no Linear layer"),
    ],
)
def test_layers_that_are_not_covered_are_named(layers, message):
    with pytest.raises(ValueError, match=message):
        golowich_bound(nn.Sequential(*layers), 1.0, 10)


def test_caps_are_the_set_and_the_network_must_be_in_it():
    network = seeded([nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)])
    wide = golowich_bound(network, 1.0, 10, caps=[10.0, 10.0])
    assert wide.value == pytest.approx(100 * (math.sqrt(4 * math.log(2)) + 1) / math.sqrt(10))
    with pytest.raises(ValueError, match=r"caps\[0\] = 0.001 is below"):
        golowich_bound(network, 1.0, 10, caps=[1e-3, 10.0])
    with pytest.raises(ValueError, match="2 Linear layers, got 1"):
        golowich_bound(network, 1.0, 10, caps=[1.0])
    with pytest.raises(ValueError, match="lacks"):
        network_complexity_lower(
            network,
            torch.zeros(2, 2),
            torch.zeros(2),
            lambda o, t: o[:, 0],
            draws=2,
            steps=1,
            caps={"x": 1.0},
            generator=torch.Generator(),
        )
