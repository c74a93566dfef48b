"""What an outer loss takes out of the graph: said where the loss moves by it, at any number of steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.bilevel import Batch, Implicit, Recorder, StopGradientWarning, Truncated, WeightedLoss
from tests.support.problems import CROSS_ENTROPY

Outer = Callable[[nn.Module], Tensor]
X = torch.randn(12, 6, generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 3, (12,), generator=torch.Generator().manual_seed(2))


def recorded(model: nn.Module, steps: int, dtype: torch.dtype) -> Recorder:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY), steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        recorder.loss(Batch.of(X.to(dtype), Y), torch.ones(12, dtype=dtype)).backward()
        optimizer.step()
    return recorder


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def losses(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(X.to(next(model.parameters()).dtype)), Y, reduction="none")


def off(model: nn.Module) -> Tensor:
    with torch.no_grad():
        weight = torch.exp(-losses(model))
        weight /= weight.sum()
    return weight


MATTERS: dict[str, Outer] = {
    "a detached weight": lambda m: (losses(m) * torch.exp(-losses(m)).detach()).mean(),
    "data": lambda m: (losses(m) * losses(m).data).mean(),
    "no_grad, in place": lambda m: (losses(m) * off(m)).sum(),
    "a number": lambda m: losses(m).mean() * losses(m).mean().item(),
    "bfloat16": lambda m: (losses(m) * losses(m).bfloat16().exp().detach()).mean(),
}


@pytest.mark.filterwarnings("ignore:Converting a tensor")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", MATTERS)
def test_an_outer_loss_that_holds_a_part_of_itself_is_said(name: str, steps: int, dtype: torch.dtype) -> None:
    recorder = recorded(net().to(dtype), steps, dtype)
    with pytest.warns(StopGradientWarning, match="outer loss, or the model in it"):
        Truncated(steps)(recorder.trajectory(), MATTERS[name])


def test_it_is_said_at_every_call_and_by_every_estimator() -> None:
    model = net()
    for _ in range(3):
        with pytest.warns(StopGradientWarning, match="outer loss, or the model in it"):
            Truncated()(recorded(model, 1, torch.float32).trajectory(), MATTERS["data"])
    with pytest.warns(StopGradientWarning, match="outer loss, or the model in it"):
        Implicit(damping=10.0)(recorded(net(), 1, torch.float32).trajectory(), MATTERS["data"])


def logged(model: nn.Module) -> Tensor:
    found = losses(model)
    found.detach().mean().item()
    with torch.no_grad():
        (model(X.to(found.dtype)).argmax(1) == Y).float().mean()
    return found.mean()


def hard(model: nn.Module) -> Tensor:
    found = losses(model)
    return found[found >= found.topk(4)[0][-1].detach()].mean()


def shifted(model: nn.Module) -> Tensor:
    logits = model(X.to(next(model.parameters()).dtype))
    shift = logits.max(1, keepdim=True)[0].detach()
    return ((logits - shift).exp().sum(1).log() + shift[:, 0] - logits.gather(1, Y[:, None])[:, 0]).mean()


def hooked(model: nn.Module) -> Tensor:
    """Square a loss as a constant times it, with a hook that makes the derivative right."""
    x = losses(model).mean()
    y = x * x.detach()
    y.register_hook(lambda gradient: 2 * gradient)
    return y


DOES_NOT: dict[str, Outer] = {"numbers for a log": logged, "the hardest": hard, "a shift": shifted, "a hook": hooked}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", DOES_NOT)
def test_an_outer_loss_that_only_looks_is_not_said(name: str, dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", StopGradientWarning)
        Truncated()(recorded(net().to(dtype), 1, dtype).trajectory(), DOES_NOT[name])


def drawn(source: Iterator[Tensor], model: nn.Module) -> Tensor:
    return (losses(model) * losses(model).detach())[next(source)].mean()


def test_an_outer_loss_that_is_another_each_time_is_left_alone() -> None:
    for source in (iter([torch.arange(4)]), cycle(torch.arange(12).split(5))):
        with warnings.catch_warnings():
            warnings.simplefilter("error", StopGradientWarning)
            found = Truncated()(recorded(net(), 1, torch.float32).trajectory(), partial(drawn, source))
        assert bool(torch.isfinite(found).all())
