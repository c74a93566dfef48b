"""A forward pass in float32 over float64's values: what it rounds, what it leaves alone, and what that is good for."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.bilevel import Recorder, Trajectory, Truncated, WeightedLoss, float64, newest_update, window
from steelyard.bilevel._float64_values import Float64Values
from tests.support.problems import CROSS_ENTROPY, relative
from tests.support.rough import data, net, outer
from tests.support.widened import widened


def chain(x: Tensor) -> Tensor:
    """Return what loses most of its digits on the way, so that a single rounding in between would show."""
    return (x.exp() * 1e4 + x - x.exp() * 1e4) * 100


def in_place(x: Tensor) -> Tensor:
    y = x * (1 / 3)
    y.mul_(1e4).add_(x, alpha=1 / 7).sub_(x * (1e4 / 3))
    return chain(y).relu_()


def through_views(x: Tensor) -> Tensor:
    first, second = chain(x).t().split(2)
    return torch.cat([first.reshape(-1), second.flatten().unsqueeze(0).squeeze(0)]).view(-1, 2).sum(dtype=torch.float32)


def written_into(x: Tensor) -> Tensor:
    held = torch.zeros(2, *x.shape)
    held[0] = chain(x)
    held[1].copy_(x).div_(7)
    held.select(0, 0).sub_(held[1])
    return held


def normalised(x: Tensor) -> Tensor:
    return F.batch_norm(chain(x), torch.zeros(4, dtype=x.dtype), torch.ones(4, dtype=x.dtype), training=True)


CHAINS = {f.__name__: f for f in (chain, in_place, through_views, written_into, normalised)}


@pytest.mark.parametrize("name", CHAINS)
def test_values_are_rounded_once(name: str) -> None:
    function = CHAINS[name]
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    default = torch.get_default_dtype()
    with Float64Values():
        found = function(x)
    assert found.dtype == torch.float32
    try:
        torch.set_default_dtype(torch.float64)
        expected = function(x.double()) if name != "through_views" else chain(x.double()).sum()
    finally:
        torch.set_default_dtype(default)
    assert relative(found.double(), expected) < 1e-6
    if name in ("chain", "normalised"):
        assert relative(function(x).double(), expected) > 1e-5  # float32's own is not as near


def test_what_is_not_a_matter_of_precision_is_the_same() -> None:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))

    def other(x: Tensor) -> list[Tensor]:
        torch.manual_seed(3)
        noise = F.dropout(torch.ones_like(x), 0.5)
        return [noise, torch.rand(3), x.argmax(1), x > 0, x.double() / 3, x.bfloat16(), torch.complex(x, x).abs()]

    with Float64Values():
        found = other(x)
    for one, expected in zip(found, other(x), strict=True):
        assert one.dtype == expected.dtype
        assert torch.equal(one, expected) or relative(one.double(), expected.double()) < 1e-6


def test_running_statistics_are_written_once() -> None:
    layer, other = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    other(x)
    with Float64Values():
        layer(x)
    assert layer.num_batches_tracked == 1
    torch.testing.assert_close(layer.running_var, other.running_var)
    torch.testing.assert_close(layer.running_mean, other.running_mean)


def test_a_tensor_that_is_written_to_from_outside_is_read_again() -> None:
    x = torch.randn(3)
    with Float64Values():
        y = x * 2
        view = y[:2]
        torch.rand(3, out=y)  # draws: left as it is
        assert torch.equal(view * 1, y[:2])
        assert torch.equal(y + 0, y.clone())


def record(optimizer: Callable[..., torch.optim.Optimizer]) -> Trajectory:
    torch.manual_seed(0)
    model = net(inplace=True)
    weight = 0.5 + torch.rand(12, generator=torch.Generator().manual_seed(1))
    steps = optimizer(model.parameters(), lr=1e-3)
    with Recorder(model, steps, WeightedLoss(CROSS_ENTROPY)) as recorder:
        recorder.loss(data(0), weight).backward()
        steps.step()
        return recorder.trajectory()


def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note of every outer gradient how it is taken."""
    noted: list[str] = []

    def look(*arguments: object, **how: object) -> window.OuterGradient:
        noted.append("over values" if how.get("exactly") else "in float64" if how.get("throughout") else "as it is")
        return window.outer_gradient(*arguments, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(newest_update, "outer_gradient", look)
    return noted


def test_a_gradient_over_such_values_is_nearer_to_float64s() -> None:
    torch.manual_seed(0)
    model = net(inplace=True)
    wide = copy.deepcopy(model).double()
    with Float64Values():
        value = outer(model)
    found = torch.autograd.grad(value, list(model.parameters()))
    expected = torch.autograd.grad(outer(wide), list(wide.parameters()))
    for one, other in zip(found, expected, strict=True):
        assert relative(one.double(), other) < 3e-6


def test_the_outer_gradient_after_a_rough_cold_step_is_taken_once_over_float64s_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(float64, "_ROUGH", 0.0)
    noted = passes(monkeypatch)
    run = record(torch.optim.Adam)
    found, truth = Truncated()(run, outer).double(), Truncated()(widened(run), outer)
    assert noted == ["over values", "in float64", "as it is"]  # a look is due; the last is of the run in float64
    assert relative(found, truth) < 1e-5


def test_a_step_that_turns_out_rough_has_it_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float64, "_ROUGH", 0.0)
    run = record(torch.optim.Adam)
    run.steps[-1].findings.gradient = None  # cleared: not known before the step is replayed
    noted = passes(monkeypatch)
    found, truth = Truncated()(run, outer).double(), Truncated()(widened(run), outer)
    assert noted == ["as it is", "over values", "in float64", "as it is"]
    assert relative(found, truth) < 1e-5


def test_a_step_that_float32_is_right_for_has_it_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    noted = passes(monkeypatch)
    Truncated()(record(torch.optim.SGD), outer)
    assert noted == ["as it is"]


def test_tangents_stay_in_float32_beside_values_that_are_rounded_once() -> None:
    x, along = (torch.randn(8, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))

    def function(x: Tensor) -> Tensor:
        y = x * (1 / 3)
        y.mul_(1e4).sub_(x * (1e4 / 3))  # loses most of its digits
        return (torch.cat([y.t(), x.t()]) + x.square().sum()).sin()

    with Float64Values([along]):
        value, moved = torch.func.jvp(function, (x,), (along,))
    expected, exactly = torch.func.jvp(function, (x.double(),), (along.double(),))
    assert value.dtype == moved.dtype == torch.float32
    assert torch.equal(value, expected.float())
    assert 1e-9 < relative(moved.double(), exactly) < 1e-5
    with Float64Values(()):
        leaf = x.clone().requires_grad_()
        loss = function(leaf).sum()
    gradient = torch.autograd.grad(loss, leaf)[0]
    assert gradient.dtype == torch.float32
