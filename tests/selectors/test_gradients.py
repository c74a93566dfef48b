"""Gradient scores against autograd and against geometry."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from steelyard.selectors import (
    deepfool,
    dfal,
    el2n,
    expected_gradient_length,
    expected_input_gradient_length,
    gradient_norm,
)
from tests.selectors.pools import generator, pool


def linear_model(seed: int = 0):
    weight = torch.randn(4, 6, generator=generator(seed), dtype=torch.float64)
    bias = torch.randn(4, generator=generator(seed + 1), dtype=torch.float64)
    return weight, bias, lambda x: F.linear(x, weight, bias)


def net(seed: int = 0):
    w1 = torch.randn(8, 6, generator=generator(seed), dtype=torch.float64)
    w2 = torch.randn(4, 8, generator=generator(seed + 1), dtype=torch.float64)
    return lambda x: F.linear(torch.tanh(F.linear(x.flatten(1), w1)), w2)


def test_output_layer_gradients_are_autograds() -> None:
    weight, _, _ = linear_model()
    _, h = pool(12)
    p = F.linear(h, weight).softmax(1)
    lengths = torch.zeros(12, 4, dtype=torch.float64)
    for i in range(12):
        for y in range(4):
            w = weight.clone().requires_grad_()
            loss = F.cross_entropy(F.linear(h[i : i + 1], w), torch.tensor([y]))
            lengths[i, y] = torch.autograd.grad(loss, w)[0].norm()
    torch.testing.assert_close(expected_gradient_length(p, h), (p * lengths).sum(1))
    labels = torch.arange(12) % 4
    torch.testing.assert_close(gradient_norm(p, h, labels), lengths.gather(1, labels[:, None])[:, 0])


def test_input_gradients_are_autograds() -> None:
    model = net()
    x = pool(9)[1].reshape(9, 2, 3)
    expected = torch.zeros(9, dtype=torch.float64)
    for i in range(9):
        for y in range(4):
            leaf = x[i : i + 1].clone().requires_grad_()
            logits = model(leaf)
            length = torch.autograd.grad(F.cross_entropy(logits, torch.tensor([y])), leaf)[0].norm()
            expected[i] += logits.softmax(1)[0, y].detach() * length
    torch.testing.assert_close(expected_input_gradient_length(model, x), expected)


def test_el2n_averages_over_models() -> None:
    p = torch.stack([pool(10, seed=s)[0] for s in range(3)])
    labels = torch.arange(10) % 4
    by_hand = (p - F.one_hot(labels, 4)).norm(dim=2).mean(0)
    torch.testing.assert_close(el2n(p, labels), by_hand)
    torch.testing.assert_close(el2n(p[0], labels), (p[0] - F.one_hot(labels, 4)).norm(dim=1))


def test_deepfool_is_the_distance_for_a_linear_model() -> None:
    weight, bias, model = linear_model()
    x = torch.randn(30, 6, generator=generator(3), dtype=torch.float64)
    logits = F.linear(x, weight, bias)
    home = logits.argmax(1)
    lead = logits.gather(1, home[:, None]) - logits
    distance = lead / (weight[home][:, None] - weight[None]).norm(dim=2)
    nearest = distance.scatter(1, home[:, None], torch.inf).amin(1)
    torch.testing.assert_close(dfal(model, x, overshoot=0.0), -nearest)
    torch.testing.assert_close(dfal(model, x), -nearest)  # the overshoot is no part of the distance


def test_one_step_lands_on_the_boundary_of_a_linear_model() -> None:
    weight = torch.randn(4, 6, generator=generator())
    x = torch.randn(500, 6, generator=generator(1))
    _, crossed = deepfool(lambda x: F.linear(x, weight), x, steps=1, overshoot=0.0)
    assert crossed.all()  # rounding leaves about half of them a hair inside


@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_deepfool_crosses_the_boundary(shape) -> None:
    model = net()
    x = torch.randn(40, *shape, generator=generator(4), dtype=torch.float64)
    perturbation, crossed = deepfool(model, x)
    assert perturbation.shape == x.shape
    assert crossed.all()
    changed = model(x + 1.03 * perturbation).argmax(1) != model(x).argmax(1)
    assert changed.double().mean() > 0.9  # the last hundredth of a curved boundary is not promised


def test_samples_without_a_gradient_come_last() -> None:
    def model(x):  # saturated below 0
        return torch.cat([x.relu(), 1 - x.relu()], 1)

    score = dfal(model, torch.tensor([[-1.0], [0.6], [3.0]]))
    assert score[0] == torch.finfo(torch.float32).min
    torch.testing.assert_close(score[1:], torch.tensor([-0.1, -2.5]), rtol=1e-4, atol=1e-4)


def test_steps_that_do_not_suffice_come_last() -> None:
    score = dfal(lambda x: torch.cat([x**4, torch.ones_like(x)], 1), torch.tensor([[20.0]]), steps=1)
    assert score.tolist() == [torch.finfo(torch.float32).min]


def test_a_tie_is_on_the_boundary() -> None:
    assert dfal(lambda x: torch.cat([x, -x], 1), torch.tensor([[0.0]])).tolist() == [0.0]


def test_parameters_get_no_gradients() -> None:
    layer = torch.nn.Linear(3, 2)
    with torch.no_grad():
        assert expected_input_gradient_length(layer, torch.ones(2, 3)).shape == (2,)
    assert layer.weight.grad is None
