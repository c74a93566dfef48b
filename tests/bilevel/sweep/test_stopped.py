"""What leaves the graph is constant to autograd: with more than one step that is said, and only where it matters."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from steelyard.bilevel import Batch, NoDerivative, Recorder, StopGradientWarning, Truncated, WeightedLoss
from tests.support.problems import CROSS_ENTROPY, relative

Taken = Callable[[Tensor], Tensor]
D = torch.float64
X = torch.randn(12, 6, generator=torch.Generator().manual_seed(1), dtype=D)
Y = torch.randint(0, 3, (12,), generator=torch.Generator().manual_seed(2))
STEPS = 2


class Scaled(nn.Module):
    """Multiplies hidden units by what a function makes of them."""

    def __init__(self, make: Taken) -> None:
        super().__init__()
        self.first, self.last, self.make = nn.Linear(6, 8), nn.Linear(8, 3), make

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        hidden = torch.tanh(self.first(x))
        return self.last(hidden * (1 + 2 * self.make(hidden).to(hidden.dtype)))  # type: ignore[no-any-return]


def trained(
    make: Taken, optimizer: Callable[..., torch.optim.Optimizer], dtype: torch.dtype, weight: Tensor
) -> tuple[nn.Module, Recorder]:
    torch.manual_seed(0)
    model = Scaled(deepcopy(make)).to(dtype)
    stepper = optimizer(model.parameters())
    recorder = Recorder(model, stepper, WeightedLoss(CROSS_ENTROPY), steps=STEPS)
    for _ in range(STEPS):
        stepper.zero_grad()
        recorder.loss(Batch.of(X.to(dtype), Y), weight.to(dtype)).backward()
        stepper.step()
    return model, recorder


def outer(model: nn.Module) -> Tensor:
    """Evaluate without what is made of hidden units: what an outer loss holds is said elsewhere."""
    assert isinstance(model, Scaled)
    return F.cross_entropy(model.last(torch.tanh(model.first(1.1 * X[:5].to(model.first.weight.dtype)))), Y[:5])


def retrained(make: Taken, optimizer: Callable[..., torch.optim.Optimizer], by: float = 1e-5) -> Tensor:
    """Return the derivative by central differences of training again in float64."""

    def value(weight: Tensor) -> float:
        return float(outer(trained(make, optimizer, D, weight)[0]))

    ahead, behind = torch.ones(12, 12, dtype=D) + by * torch.eye(12, dtype=D), torch.ones(12, 12, dtype=D)
    return torch.tensor(
        [
            (value(a) - value(b - by * e)) / (2 * by)
            for a, b, e in zip(ahead, behind, torch.eye(12, dtype=D), strict=True)
        ]
    )


def off(make: Taken) -> Taken:
    def inside(hidden: Tensor) -> Tensor:
        with torch.no_grad():
            return make(hidden)

    return inside


def inferred(hidden: Tensor) -> Tensor:
    with torch.inference_mode():
        values = hidden.sigmoid()
    return torch.tensor(values.tolist())


def written(hidden: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.zeros(8, dtype=hidden.dtype).add_(hidden.mean(0))


def swapped(hidden: Tensor) -> Tensor:
    with torch.no_grad():
        one, other = hidden.split(4, 1)
    return torch.cat([other, one], 1)


def part(hidden: Tensor) -> Tensor:
    with torch.enable_grad():
        still = off(torch.sigmoid)(hidden)
    return still + hidden.tanh()


def counted(hidden: Tensor) -> Tensor:
    with torch.no_grad():
        torch.zeros(1).add_(1)
    return hidden.float().sigmoid().detach()


def copied(hidden: Tensor) -> Tensor:
    copy = nn.Parameter(torch.zeros(8, dtype=hidden.dtype))
    with torch.no_grad():
        copy.copy_(hidden.mean(0))
    return copy.sigmoid()


def placed(hidden: Tensor) -> Tensor:
    table = torch.zeros(12)
    with torch.no_grad():
        table[Y == 1] = hidden.float().sigmoid().mean(1)[Y == 1]
    return table[:, None]


def nudged(hidden: Tensor) -> Tensor:
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(hidden.square().sum(), hidden, retain_graph=True)
    return slope.sigmoid()


LEFT_OUT: dict[str, Taken] = {
    "no_grad, a count beside": counted,
    "no_grad, into a copy": copied,
    "no_grad, by places": placed,
    "detach, written in place": lambda h: h.sigmoid().detach().mul_(2),
    "a slope": nudged,
    "by name": lambda h: torch.detach(input=h.sigmoid()),
    "new_tensor": lambda h: h.new_tensor(h.sigmoid()),
    "a list": lambda h: torch.tensor([list(row) for row in h.sigmoid()], dtype=torch.float32),
    "a detached weight of the largest": lambda h: (h >= h.topk(3)[0][:, -1:].detach()) * h.sigmoid().detach(),
    "detach": lambda h: h.sigmoid().detach(),
    "detach, float": lambda h: h.float().sigmoid().detach(),
    "detach, bfloat16": lambda h: h.bfloat16().sigmoid().detach(),
    "detach, half": lambda h: h.half().sigmoid().detach(),
    "clone, written": lambda h: h.detach().clone().mul_(0.5),
    "straight through": lambda h: (h.sigmoid() > 0.5).to(h) - h.sigmoid().detach() + h.sigmoid(),
    "data": lambda h: h.data.sigmoid(),
    "data, bfloat16": lambda h: h.data.bfloat16().sigmoid(),
    "no_grad": off(torch.sigmoid),
    "no_grad, float": off(lambda h: h.float().sigmoid()),
    "no_grad, bfloat16": off(lambda h: h.bfloat16().sigmoid()),
    "no_grad, two of them": off(lambda h: torch.max(h, 0)[0]),
    "no_grad, views": swapped,
    "no_grad, in place": written,
    "no_grad, a part": part,
    "inference_mode": inferred,
    "tolist": lambda h: torch.tensor(h.sigmoid().tolist()),
    "numpy, float32": lambda h: torch.from_numpy(h.sigmoid().detach().numpy().astype(np.float32)),
    "item": lambda h: torch.full_like(h, h.sigmoid().mean().item()),
    "item, float32": lambda h: torch.tensor(h.sigmoid().mean().item()),
    "tensor": lambda h: torch.tensor(h.detach()).sigmoid(),
}


@pytest.mark.filterwarnings("ignore:To copy construct", "ignore:Converting a tensor")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_leaves_the_graph_is_said_in_every_precision(name: str, dtype: torch.dtype) -> None:
    for optimizer in (partial(torch.optim.SGD, lr=0.3), partial(torch.optim.Adam, lr=1e-2)):
        _, recorder = trained(LEFT_OUT[name], optimizer, dtype, torch.ones(12))
        with pytest.warns(StopGradientWarning, match="with more than one step"):
            Truncated(STEPS)(recorder.trajectory(), outer)


def test_it_is_said_under_autocast_and_at_every_call() -> None:
    model = Scaled(counted)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    recorder = Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY), steps=STEPS)
    for _ in range(4):
        for _ in range(STEPS):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = recorder.loss(Batch.of(X.float(), Y), torch.ones(12))
            loss.backward()
            optimizer.step()
        with pytest.warns(StopGradientWarning, match="with more than one step"):
            Truncated(STEPS)(recorder.trajectory(), outer)


class OfNumpy(torch.autograd.Function):
    """tanh by numpy."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        """Return tanh."""
        y = torch.from_numpy(np.tanh(x.detach().numpy()))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, g: Tensor) -> Tensor:  # type: ignore[override]
        """Return its derivative."""
        (y,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return g * (1 - y * y)


class Within(torch.autograd.Function):
    """tanh with a graph of its own, as an implicit layer has it."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        """Return tanh."""
        with torch.enable_grad():
            y = torch.tanh(x.detach().requires_grad_())
        ctx.save_for_backward(x)
        return y.detach()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, g: Tensor) -> Tensor:  # type: ignore[override]
        """Return its derivative."""
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return g * (1 - torch.tanh(x) ** 2)


def noted(hidden: Tensor) -> Tensor:
    with torch.no_grad():
        float((hidden > 0).double().mean()), hidden.norm().item()
    hidden.detach().float().mean().item()
    return hidden.sigmoid()


def nested(hidden: Tensor) -> Tensor:
    with torch.no_grad(), torch.enable_grad():
        return hidden.sigmoid()


def masked(hidden: Tensor) -> Tensor:
    scores = hidden * 1
    scores.data.masked_fill_(torch.arange(8) > 5, -9.0)
    return scores.sigmoid()


class Frozen(nn.Module):
    """A residual block under no_grad, of parameters that the optimizer is given and does not train."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(8, 8).requires_grad_(False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return what the block makes of numbers that no parameter moves."""
        with torch.no_grad():
            found = self.block(torch.linspace(-1, 1, 8).to(hidden.dtype))
            found += 1
            return torch.relu(found)


NOT_LEFT_OUT: dict[str, Taken] = {
    "the largest": lambda h: (h >= h.topk(3)[0][:, -1:].detach()).to(h.dtype),
    "the largest, as a number": lambda h: (h == h.max().item()).to(h.dtype) + h.sigmoid(),
    "a mask through data": masked,
    "a frozen block": Frozen(),
    "nothing": torch.sigmoid,
    "casts": lambda h: h.float().sigmoid(),
    "numbers for a log": noted,
    "a choice": off(lambda h: (h > h.median()).to(h.dtype)),
    "labels": lambda h: F.one_hot(h.detach().argmax(1), 8).to(h.dtype),
    "the confident": lambda h: (h.softmax(1).amax(1, keepdim=True).detach() > 0.15) * h.sigmoid(),
    "a teacher": off(lambda h: torch.tanh(torch.linspace(-1, 1, 8, dtype=h.dtype))),
    "gradients on again": nested,
    "a checkpoint": partial(checkpoint, torch.sigmoid, use_reentrant=False),
    "a reentrant checkpoint": partial(checkpoint, torch.sigmoid, use_reentrant=True),
    "a function of numpy": OfNumpy.apply,
    "a function with a graph": Within.apply,
}


@pytest.mark.filterwarnings("ignore:None of the inputs", "ignore:Converting a tensor")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", NOT_LEFT_OUT)
def test_what_leaves_the_graph_and_does_not_matter_is_not_said(name: str, dtype: torch.dtype) -> None:
    for optimizer in (partial(torch.optim.SGD, lr=0.3), partial(torch.optim.Adam, lr=1e-2)):
        make = NOT_LEFT_OUT[name]
        _, recorder = trained(make, optimizer, dtype, torch.ones(12))
        with warnings.catch_warnings():
            warnings.simplefilter("error", StopGradientWarning)
            found = Truncated(STEPS)(recorder.trajectory(), outer)
        truth = retrained(torch.sigmoid if name == "casts" else make, optimizer)
        assert relative(found.double(), truth) < (1e-5 if dtype == D else 1e-4)


@pytest.mark.parametrize("make", [lambda h: h.bfloat16().sigmoid(), lambda h: F.gumbel_softmax(h, hard=True)])
def test_what_rounds_the_gradient_or_stops_it_within_an_operator_is_refused(make: Taken) -> None:
    _, recorder = trained(make, partial(torch.optim.SGD, lr=0.3), D, torch.ones(12))
    with pytest.raises(NoDerivative):
        Truncated(STEPS)(recorder.trajectory(), outer)


@pytest.mark.parametrize("part", ["all", "a layer"])
def test_a_compiled_model_is_looked_at_as_it_is_written(part: str) -> None:
    found = {}
    for compiled in (False, True):
        torch.manual_seed(0)
        model = Scaled(torch.sigmoid)
        if compiled:
            (model if part == "all" else model.first).compile(backend="eager")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        recorder = Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY), steps=STEPS)
        for _ in range(STEPS):
            optimizer.zero_grad()
            recorder.loss(Batch.of(X.float(), Y), torch.ones(12)).backward()
            optimizer.step()
        found[compiled] = Truncated(STEPS)(recorder.trajectory(), outer)
    assert relative(found[True], found[False]) < 1e-5
