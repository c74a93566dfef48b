"""The look at H takes a few samples where all of them are large and torch's own: it finds what a look at all finds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steelyard.bilevel import Batch, NoDerivative, StopGradientWarning, Truncated
from steelyard.bilevel.sweep import ladder
from tests.bilevel.sweep.test_ladder import D, record, seeded, truth

COUNT = 12
ROWS = Batch.of(torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(3), dtype=D), torch.arange(COUNT).to(D))


class Once(torch.autograd.Function):
    """A backward pass that is right, of which the derivative is not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.values = (1 - x.tanh().square()).tolist()
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return g * torch.tensor(ctx.values, dtype=g.dtype)


class Net(nn.Module):
    """Notes how many samples it sees in float64.

    Args:
        wrong: from the number of samples to whether the second derivative is wrong.
        fixed: it takes `COUNT` samples and no other number.
    """

    def __init__(self, wrong: Any = lambda count: False, fixed: bool = False) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(4, 3), nn.Linear(3, 1)
        self.wrong, self.fixed = wrong, fixed
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == D:
            self.seen.append(len(x))
        hidden = self.layer(x.reshape(COUNT, 4) if self.fixed else x)
        found: Tensor = self.last(Once.apply(hidden) if self.wrong(len(x)) else hidden.tanh())
        return found


def outer(model: nn.Module) -> Tensor:
    return sum((p.square().sum() for p in model.parameters()), torch.zeros(()))


def asked(make: Any, memory: int) -> tuple[Tensor, Net, Truncated]:
    model = seeded(make, torch.float32)
    estimator = Truncated(3, memory=memory)
    data = Batch.of(ROWS.inputs.float(), ROWS.targets.float() / COUNT)  # type: ignore[union-attr]
    return estimator(record(model, data, steps=3), outer), model, estimator  # type: ignore[return-value]


def right(make: Any) -> Tensor:
    return truth(make, Batch.of(ROWS.inputs, ROWS.targets / COUNT), outer, steps=3)


def test_a_look_takes_a_few_samples_where_all_take_too_much_memory() -> None:
    few, model, _ = asked(Net, memory=1)
    assert set(model.seen) == {8}
    many, model, _ = asked(Net, memory=2**28)
    assert set(model.seen) == {COUNT}
    assert torch.equal(few, many)
    torch.testing.assert_close(few.double(), right(Net), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("fixed", [False, True])
def test_a_few_samples_show_a_second_derivative_that_is_wrong(fixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "is_of_torch", lambda question: True)  # as if the operator were

    def make() -> Net:
        return Net(lambda count: True, fixed)

    found, _, estimator = asked(make, memory=1)
    assert estimator.answered["differences of the gradient"] == 2
    torch.testing.assert_close(found.double(), right(make), rtol=1e-2, atol=1e-4)


def test_what_is_wrong_of_a_few_alone_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "is_of_torch", lambda question: True)
    found, _, estimator = asked(lambda: Net(lambda count: count < COUNT), memory=1)
    assert "differences of the gradient" not in estimator.answered
    torch.testing.assert_close(found.double(), right(Net), rtol=1e-3, atol=1e-6)


def test_samples_of_weight_0_are_not_looked_at() -> None:
    model = seeded(Net, torch.float32)
    data = Batch.of(ROWS.inputs.float(), ROWS.targets.float() / COUNT)  # type: ignore[union-attr]
    weight = torch.ones(COUNT).index_fill(0, torch.tensor([0, 5, 9]), 0)
    run = record(model, data, steps=2, weight=weight)
    looked = []

    def call(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].dtype == D:
            looked.append(inputs[0])

    with model.register_forward_pre_hook(call):
        Truncated(2, memory=1)(run, outer)
    assert looked
    for rows in looked:
        assert len(rows) == 8
        assert not any(torch.equal(row, ROWS.inputs[place].float().double()) for row in rows for place in (0, 5, 9))  # type: ignore[union-attr, index]


class OneRow(Net):
    """The row whose last input is the largest goes through `special`."""

    def __init__(self, special: Any) -> None:
        super().__init__()
        self.special = special

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(x)
        largest = (x[:, -1:] == x[:, -1:].max()) & (torch.tensor(len(x)) == COUNT)
        found: Tensor = self.last(torch.where(largest, self.special(hidden), hidden.tanh()))
        return found


def halved(x: Tensor) -> Tensor:
    """Have half of the gradient of `x` come back, and of its derivative what autograd has."""
    x.register_hook(lambda gradient: gradient - 0.5 * gradient.detach())
    return x.tanh()


def test_what_hangs_on_one_sample_is_looked_at_of_all() -> None:
    found, _, estimator = asked(lambda: OneRow(Once.apply), memory=1)
    assert estimator.answered["differences of the gradient"] == 2
    torch.testing.assert_close(found.double(), right(lambda: OneRow(Once.apply)), rtol=1e-2, atol=1e-4)
    with pytest.raises(NoDerivative):
        asked(lambda: OneRow(halved), memory=1)


def test_a_gradient_that_is_stopped_on_one_row_is_warned_of() -> None:
    with pytest.warns(StopGradientWarning):
        asked(lambda: OneRow(lambda hidden: hidden * hidden.detach().cos()), memory=1)


@pytest.mark.parametrize(
    "bend",
    [
        lambda model: model.layer.weight.register_hook(lambda gradient: 0.5 * gradient),
        lambda model: model.last.register_full_backward_hook(lambda module, into, out: (into[0],)),
        lambda model: model.layer.register_forward_hook(lambda module, inputs, found: Once.apply(found)),
    ],
)
def test_hooks_have_all_samples_looked_at(bend: Any) -> None:
    def make() -> Net:
        model = Net()
        bend(model)
        return model

    _, model, _ = asked(make, memory=1)
    assert set(model.seen) == {COUNT}
