"""The look at H takes a few samples where all of them are large: it finds what a look at all finds, in less."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steelyard.bilevel import Batch, Truncated
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
def test_a_few_samples_show_a_second_derivative_that_is_wrong(fixed: bool) -> None:
    def make() -> Net:
        return Net(lambda count: True, fixed)

    found, _, estimator = asked(make, memory=1)
    assert estimator.answered["differences of the gradient"] == 2
    torch.testing.assert_close(found.double(), right(make), rtol=1e-2, atol=1e-4)


def test_what_is_wrong_of_a_few_alone_is_no_fault() -> None:
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
