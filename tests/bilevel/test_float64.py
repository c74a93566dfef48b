"""Adaptive updates in float32: where the rounding of the gradient would decide the answer, it is taken in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.bilevel import (
    Batch,
    NoDerivative,
    Recorder,
    RoundingWarning,
    Trajectory,
    Truncated,
    WeightedLoss,
    float64,
    truncated,
    update,
)
from steelyard.bilevel.optimizers._adaptive import adaptive
from tests.support.problems import CROSS_ENTROPY, relative
from tests.support.widened import widened

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adam-decay": partial(torch.optim.Adam, weight_decay=1e-2),
    "adam-maximize": partial(torch.optim.Adam, maximize=True),
    "amsgrad": partial(torch.optim.Adam, amsgrad=True),
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "rmsprop": torch.optim.RMSprop,
    "rmsprop-centered": partial(torch.optim.RMSprop, centered=True),
    "adagrad": torch.optim.Adagrad,
}


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 200), nn.ReLU(), nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 5))


def batch(seed: int, rows: int = 48) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch.of(torch.randn(rows, 40, generator=generator), torch.randint(0, 5, (rows,), generator=generator))


def outer(model: nn.Module) -> Tensor:
    held = batch(9)
    return F.cross_entropy(model(held.inputs.to(next(model.parameters()).dtype)), held.targets)


def run(
    make: Callable[[], nn.Module] = net,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    warmup: int = 0,
    steps: int = 1,
    loss: Callable[[Tensor, Tensor], Tensor] = CROSS_ENTROPY,
    **options: Any,
) -> Trajectory:
    torch.manual_seed(0)
    model = make()
    optimizer = optimizer([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    weight = 0.5 + torch.rand(48, generator=torch.Generator().manual_seed(1))
    recorder = Recorder(model, optimizer, WeightedLoss(loss), steps=steps, **options)
    for number in range(warmup + steps):
        optimizer.zero_grad()
        recorder.loss(batch(number), weight).backward()
        optimizer.step()
    return recorder.trajectory()


def error(record: Trajectory) -> float:
    estimator = Truncated(len(record.steps))
    return relative(estimator(record, outer).double(), estimator(widened(record), outer))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_cold_start_in_float32_is_as_right_as_the_rest(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record = run(optimizer=OPTIMIZERS[name])
    assert error(record) < 1e-5
    monkeypatch.setattr(update, "TOLERANCE", math.inf)
    assert error(record) > 1e-4


def test_a_parameter_without_dimensions() -> None:
    class Scaled(nn.Linear):
        def __init__(self) -> None:
            super().__init__(40, 200)
            self.scale = nn.Parameter(torch.tensor(0.7))

        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs) * self.scale

    def make() -> nn.Module:
        return nn.Sequential(Scaled(), nn.ReLU(), nn.Linear(200, 5))

    for optimizer in ("adam", "adam-decay", "rmsprop-centered"):
        assert error(run(make, OPTIMIZERS[optimizer])) < 1e-5


def test_windows_that_begin_cold() -> None:
    assert error(run(steps=3)) < 1e-5


def test_with_the_last_forward_pass_kept() -> None:
    assert error(run(reuse=True)) < 1e-5


def test_dropout_draws_the_same_masks_in_float64() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(40, 200), nn.ReLU(), nn.Dropout(0.3), nn.Linear(200, 5))

    assert error(run(make)) < 1e-5


@pytest.mark.parametrize("steps", [1, 3])
def test_where_the_forward_pass_itself_is_rough(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """BatchNorm of values whose spread is a thousandth of their size, so that float32 keeps few digits of it."""

    def make() -> nn.Module:
        first = nn.Linear(40, 100)
        nn.init.constant_(first.bias, 3000.0).requires_grad_(False)  # its gradient would be nothing but rounding
        return nn.Sequential(first, nn.BatchNorm1d(100), nn.Tanh(), nn.Linear(100, 5))

    def linear(model: nn.Module) -> Tensor:  # that of the net would give an adjoint as rough
        return torch.stack([(p.flatten() * torch.arange(p.numel()).cos()).sum() for p in model.parameters()]).sum()

    monkeypatch.setattr(update, "TOLERANCE", 0.0)  # the warm steps of a longer window would not be looked at
    record = run(make, steps=steps, reuse=True)
    expected = Truncated(steps)(widened(record), linear)
    assert relative(Truncated(steps)(record, linear).double(), expected) < 1e-5
    monkeypatch.setattr(float64, "_ROUGH", math.inf)
    monkeypatch.setattr(truncated, "is_cold", lambda step: False)
    assert relative(Truncated(steps)(record, linear).double(), expected) > 1e-4


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each replay in float64 that was asked for gave a gradient."""
    found: list[bool] = []
    real = update.gradient_in_float64

    def noted(*args: Any, **options: Any) -> Any:
        gradients = real(*args, **options)
        found.append(gradients is not None)
        return gradients

    monkeypatch.setattr(update, "gradient_in_float64", noted)
    return found


def test_asked_for_at_a_cold_start_only(replays: list[bool]) -> None:
    Truncated()(run(optimizer=partial(torch.optim.SGD, momentum=0.9)), outer)
    Truncated()(run(warmup=10), outer)
    Truncated()(widened(run()), outer)
    assert replays == []
    Truncated()(run(), outer)
    assert replays == [True]


def _under_autocast(kind: type[torch.optim.Optimizer], eps: float, loss: Any, steps: int = 1) -> Trajectory:
    """A bias before BatchNorm: in eight bits its gradient is rounding, as large as other gradients."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    data, weight = Batch.of(torch.randn(32, 6), torch.randint(0, 3, (32,))), 0.5 + torch.rand(32)
    optimizer = kind(model.parameters(), lr=1e-2, eps=eps)  # type: ignore[call-arg]
    with Recorder(model, optimizer, WeightedLoss(loss), steps) as recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                value = recorder.loss(data, weight)
            value.backward()
            optimizer.step()
        return recorder.trajectory()


def _judged(model: nn.Module) -> Tensor:
    dtype = next(model.parameters()).dtype
    inputs = torch.linspace(-2, 2, 96, dtype=dtype).view(16, 6).sin()
    return F.cross_entropy(model.eval()(inputs), torch.arange(16) % 3)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("eps", [1e-1, 1e-3, 1e-5, 1e-8])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.RMSprop], ids=lambda kind: kind.__name__)
def test_rounding_does_not_decide_under_autocast(kind: type[torch.optim.Optimizer], eps: float, steps: int) -> None:
    record = _under_autocast(kind, eps, CROSS_ENTROPY, steps)
    exact = widened(record)
    for step in exact.steps:
        step.conditions = replace(step.conditions, autocast=None)
        step.findings.projected = None
    assert relative(Truncated(steps)(record, _judged).double(), Truncated(steps)(exact, _judged)) < 0.05


def test_what_float64_does_not_take_is_taken_in_float32_under_autocast(replays: list[bool]) -> None:
    loss = partial(F.cross_entropy, weight=torch.linspace(0.5, 1.5, 3), reduction="none")
    record = _under_autocast(torch.optim.AdamW, 1e-3, loss)
    found = Truncated()(record, _judged)
    assert replays == [True]
    step = record.steps[0]
    step.conditions, step.findings.gradient = replace(step.conditions, autocast=None), None
    assert relative(found, Truncated()(record, _judged)) < 1e-3


def test_noise_of_its_own_is_refused_under_autocast() -> None:
    class Noisy(nn.CrossEntropyLoss):
        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return super().forward(outputs * (1 + torch.randn_like(outputs)), targets)

    record = _under_autocast(torch.optim.AdamW, 1e-8, Noisy(reduction="none"))
    with pytest.raises(NoDerivative, match="without autocast"):
        Truncated()(record, _judged)


def test_a_loss_that_holds_float32_is_taken_in_float64(replays: list[bool]) -> None:
    weight = torch.linspace(0.5, 1.5, 5)
    record = run(loss=partial(F.cross_entropy, weight=weight, reduction="none"))
    found = Truncated()(record, outer).double()
    assert replays == [True]
    wide = widened(record)
    wide.objective = WeightedLoss(partial(F.cross_entropy, weight=weight.double(), reduction="none"))
    assert relative(found, Truncated()(wide, outer)) < 1e-5


def test_noise_that_is_drawn_in_the_inputs_precision_is_the_trainings(replays: list[bool]) -> None:
    class Noisy(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            noise = torch.randn_like(inputs, dtype=torch.float32) if self.wide else torch.randn_like(inputs)
            return super().forward(inputs + noise)

        wide = False

    record = run(lambda: nn.Sequential(Noisy(40, 100), nn.ReLU(), nn.Linear(100, 5)))
    found = Truncated()(record, outer).double()
    assert replays == [True]
    wide = widened(record)
    wide.module[0].wide = True  # type: ignore[index,union-attr]
    assert relative(found, Truncated()(wide, outer)) < 1e-5


def test_another_gradient_in_float64_is_not_taken(replays: list[bool]) -> None:
    class Other(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs if inputs.dtype == torch.float32 else 2 * inputs)

    record = run(lambda: nn.Sequential(Other(40, 100), nn.ReLU(), nn.Linear(100, 5)))
    with pytest.warns(RoundingWarning, match="Adam's update"):
        Truncated()(record, outer)
    assert replays == [False]


def test_a_gradient_of_rounding_alone_is_left_as_recorded() -> None:
    """The bias before BatchNorm moves no loss; its float64 gradient is about 0, where Adam's update moves most."""

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(40, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, 5))

    record = run(make)
    noise = record.steps[0].findings.gradient["0.bias"][0]  # type: ignore[index]
    assert 0 < noise.abs().max() < 1e-7
    found = update.pull_update(record, record.steps[0], _adjoint(record), {}, last=True).direction["0.bias"]
    recorded = 1e-3 * 1e-8 / (noise.abs() + 1e-8).square()
    assert torch.allclose(found, -_adjoint(record)["0.bias"] * recorded, rtol=1e-3)


def _adjoint(record: Trajectory) -> dict[str, Tensor]:
    return {name: torch.ones_like(p) for name, p in record.steps[0].parameters.items()}


@pytest.mark.parametrize("count", [0, 1, 3, 50])
def test_the_bound_on_the_second_derivative(count: int) -> None:
    """Against central differences in float64, for moments of real and of heavy-tailed gradients."""
    generator = torch.Generator().manual_seed(count)

    def draw() -> Tensor:
        size = 10.0 ** (12 * torch.rand(4000, generator=generator, dtype=torch.float64) - 12)
        return size * torch.randn(4000, generator=generator, dtype=torch.float64)

    b1, b2, rate = 0.9, 0.999, 1e-3
    first, second = torch.zeros(4000, dtype=torch.float64), torch.zeros(4000, dtype=torch.float64)
    for _ in range(count):
        g = draw()
        first, second = b1 * first + (1 - b1) * g, b2 * second + (1 - b2) * g.square()
    rate /= 1 - b1 ** (count + 1)
    derivative = partial(
        adaptive,
        first=first,
        second=second,
        e=rate * (1 - b1),
        f=rate * b1,
        rho=b2,
        sigma=1 - b2,
        kappa=math.sqrt(1 - b2 ** (count + 1)),
        eps=1e-8,
        last=True,
    )
    d = draw()
    h = 1e-5 * (d.abs() + 1e-9)
    bend = (derivative(d + h).by_gradient - derivative(d - h).by_gradient) / (2 * h)
    bound = derivative(d, sensitive=True).curvature
    assert bound is not None
    assert (bend.abs() <= bound.abs() * (1 + 1e-3)).all()
