"""Loops and optimizers that somebody else came up with, and that once gave wrong derivatives without a word."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.bilevel import Batch, FiniteDifference, NoDerivative, Recorder, Truncated, WeightedLoss

CROSS_ENTROPY = partial(F.cross_entropy, reduction="none")


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.squeeze(1) - targets).square()


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


INPUTS, LABELS, ELSEWHERE = draws(8, 4), torch.arange(8) % 3, draws(6, 4, seed=1)
ONES = torch.ones(8, dtype=torch.float64)


def mlp(outputs: int = 3, norm: bool = False) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = [nn.Linear(4, 5), *([nn.BatchNorm1d(5)] if norm else []), nn.Tanh(), nn.Linear(5, outputs)]
        return nn.Sequential(*layers).double()


def cross_entropy(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(ELSEWHERE), torch.arange(6) % 3)


def evaluated(model: nn.Module) -> Tensor:
    model.eval()
    value = cross_entropy(model)
    model.train()
    return value


SGD = partial(torch.optim.SGD, lr=0.3)
Between = Callable[[torch.optim.Optimizer, nn.Module], Any]


def loop(
    weight: Tensor,
    plan: list[list[list[int]]],
    *,
    estimator: Any = None,
    norm: bool = False,
    make: Callable[..., torch.optim.Optimizer] = SGD,
    outer: Callable[[nn.Module], Tensor] = cross_entropy,
    after: Between = lambda optimizer, model: None,
    clear: Callable[[torch.optim.Optimizer], None] = lambda optimizer: optimizer.zero_grad(),
) -> Any:
    """Train by `plan`, steps of micro-batches of rows; the derivative by an estimator, or the outer value."""
    model = mlp(norm=norm)
    optimizer = make(model.parameters())
    data, objective = Batch.of(INPUTS, LABELS), WeightedLoss(CROSS_ENTROPY, normalise="none")
    recorder = Recorder(model, optimizer, objective, steps=len(plan)) if estimator else None
    for step in plan:
        clear(optimizer)
        for rows in step:
            some = torch.tensor(rows, dtype=torch.long)
            if recorder is not None:
                loss = recorder.loss(data.take(some), weight[some])
            else:
                loss = (weight[some] * CROSS_ENTROPY(model(INPUTS[some]), LABELS[some])).sum()
            loss.backward()
        optimizer.step()
        after(optimizer, model)
    if recorder is None:
        return outer(model).item()
    trajectory = recorder.trajectory()
    found = torch.zeros(8, dtype=torch.float64).index_add(0, trajectory.index, estimator(trajectory, outer))
    recorder.close()
    return found


def retrained(weight: Tensor, run: Callable[[Tensor], float], h: float = 1e-4) -> Tensor:
    each = torch.eye(8, dtype=torch.float64) * h
    return torch.tensor([(run(weight + one) - run(weight - one)) / (2 * h) for one in each], dtype=torch.float64)


@pytest.mark.parametrize("estimator", [Truncated, FiniteDifference], ids=["truncated", "differences"])
@pytest.mark.parametrize("to_none", [True, False], ids=["cleared to None", "cleared to 0"])
@pytest.mark.parametrize(
    "plan",
    [[[[0, 1], [2, 3]]], [[[0], [1]], [[0]]], [[[2, 3], [0, 1]]], [[[0, 1], [0], [4, 5]], [[0, 2], [1, 3]]]],
    ids=["first", "comes again", "last", "twice first"],
)
def test_a_micro_batch_whose_gradient_is_zero_is_a_micro_batch(plan: Any, to_none: bool, estimator: Any) -> None:
    weight = ONES.clone()
    weight[:2] = 0

    def clear(optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=to_none)

    found = loop(weight, plan, estimator=estimator(steps=len(plan)), clear=clear)
    expected = retrained(weight, lambda w: loop(w, plan, clear=clear))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("to_none", [True, False], ids=["cleared to None", "cleared to 0"])
def test_what_was_cleared_before_the_step_is_not_a_part_of_it(to_none: bool) -> None:
    weight = ONES.clone()
    weight[:2] = 0
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    data = Batch.of(INPUTS, LABELS)
    with Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY, normalise="none")) as recorder:
        recorder.loss(data.take([0, 1]), weight[:2]).backward()
        optimizer.zero_grad(set_to_none=to_none)
        recorder.loss(data.take([2, 3]), weight[2:4]).backward()
        optimizer.step()
        assert recorder.trajectory().index.tolist() == [2, 3]


def test_an_empty_micro_batch_moves_no_running_statistics() -> None:
    plan = [[[0, 1, 2], [], [3, 4, 5]], [[5, 6, 7], []]]
    found = loop(ONES, plan, estimator=Truncated(steps=2), norm=True, outer=evaluated)
    expected = retrained(ONES, lambda w: loop(w, plan, norm=True, outer=evaluated))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_pass_that_measures_in_training_mode_is_refused_where_it_matters(steps: int) -> None:
    plan = [[[0, 1, 2, 3]], [[4, 5, 6, 7]]][:steps]

    def measure(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        with torch.no_grad():
            model(ELSEWHERE)

    with pytest.raises(NoDerivative, match=r"call model.eval\(\) before a pass that only measures"):
        loop(ONES, plan, estimator=Truncated(steps=steps), norm=True, outer=evaluated, after=measure)
    # an outer loss that does not read them has its derivative
    found = loop(ONES, plan, estimator=Truncated(steps=steps), norm=True, after=measure)
    expected = retrained(ONES, lambda w: loop(w, plan, norm=True, after=measure))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_a_pass_that_measures_in_evaluation_mode_changes_nothing() -> None:
    plan = [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]

    def measure(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        model.eval()
        with torch.no_grad():
            model(ELSEWHERE)
        model.train()

    found = loop(ONES, plan, estimator=Truncated(steps=2), norm=True, outer=evaluated, after=measure)
    assert torch.equal(found, loop(ONES, plan, estimator=Truncated(steps=2), norm=True, outer=evaluated))


@pytest.mark.parametrize(
    ("make", "change", "said"),
    [
        (partial(torch.optim.Adam, lr=0.05), lambda o, m: o.state.clear(), "'step' of parameter '0.weight'"),
        (
            partial(torch.optim.SGD, lr=0.3, momentum=0.9),
            lambda o, m: o.state[m[0].weight]["momentum_buffer"].mul_(0.5),
            "'momentum_buffer' of parameter '0.weight'",
        ),
        (
            partial(torch.optim.SGD, lr=0.3),
            lambda o, m: o.param_groups[0].update(params=[m[0].weight, m[0].bias]),
            "'2.weight' has left the optimizer's groups",
        ),
    ],
    ids=["restarted", "damped", "a parameter leaves"],
)
def test_an_optimizer_that_is_changed_between_recorded_steps_is_refused(make: Any, change: Between, said: str) -> None:
    plan = [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]
    with pytest.raises(RuntimeError, match=said):
        loop(ONES, plan, estimator=Truncated(steps=2), make=make, after=change)


class Own(torch.optim.Optimizer):
    """A user's optimizer: theta moves by `update`."""

    update: Any

    def __init__(self, parameters: Any, lr: float = 0.1) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["steps"] = state.get("steps", 0) + 1
                self.update(p, p.grad, group["lr"], state["steps"])


class Exponentiated(Own):
    def update(self, p: Tensor, g: Tensor, lr: float, steps: int) -> None:
        p.mul_(torch.exp(-lr * g * p.sign()))


class Decayed(Own):
    def update(self, p: Tensor, g: Tensor, lr: float, steps: int) -> None:
        p.sub_(lr * (g + 0.5 * p / (1 + p * p)))


class Clipped(Own):
    def update(self, p: Tensor, g: Tensor, lr: float, steps: int) -> None:
        p.sub_(lr * g * min(1.0, float(2.0 / (g.norm() + 1e-6))))


class Warm(Own):
    def update(self, p: Tensor, g: Tensor, lr: float, steps: int) -> None:
        p.sub_(lr * g * (float(p.norm() / (g.norm() + 0.1)) if steps > 3 else 1.0))


class Centred(Own):
    def update(self, p: Tensor, g: Tensor, lr: float, steps: int) -> None:
        p.sub_(lr * (g - g.mean(1, keepdim=True) if p.ndim == 2 and len(p) > 4 else g))


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("kind", [Exponentiated, Decayed], ids=["exponentiated", "decayed"])
def test_an_update_that_is_not_affine_in_a_parameter_of_one_entry(kind: Any, steps: int) -> None:
    targets, elsewhere = draws(8, seed=2), draws(6, seed=3)

    def outer(model: nn.Module) -> Tensor:
        return squared(model(ELSEWHERE), elsewhere).mean()

    def train(weight: Tensor, records: bool) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = nn.Linear(4, 1).double()
        optimizer = kind(model.parameters())
        with Recorder(model, optimizer, WeightedLoss(squared), steps=steps) as recorder:
            for _ in range(steps):
                optimizer.zero_grad()
                if records:
                    recorder.loss(Batch.of(INPUTS, targets), weight).backward()
                else:
                    ((weight * squared(model(INPUTS), targets)).sum() / weight.sum()).backward()
                optimizer.step()
            return Truncated(steps=steps)(recorder.trajectory(), outer) if records else outer(model).item()

    weight = torch.linspace(0.5, 1.5, 8, dtype=torch.float64)
    expected = retrained(weight, lambda w: train(w, False))
    torch.testing.assert_close(train(weight, True), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", [Clipped, Warm, Centred], ids=["a clip that bites", "after warm-up", "large matrices"])
def test_what_is_not_elementwise_in_the_recorded_step_alone_is_refused(kind: Any) -> None:
    plan = [[[0, 1, 2, 3, 4, 5, 6, 7]]] * 5
    with pytest.raises(RuntimeError, match=r"not elementwise.* in a recorded step of the training"):
        loop(20 * ONES, plan, estimator=Truncated(steps=1), make=kind)


@pytest.mark.filterwarnings("ignore::steelyard.bilevel.FlatUpdateWarning")  # Rprop takes signs
@pytest.mark.parametrize(
    "make",
    [torch.optim.ASGD, torch.optim.Rprop, type("Mine", (torch.optim.SGD,), {}), Decayed],
    ids=["ASGD", "Rprop", "a subclass", "an own one"],
)
def test_a_parameter_without_axes_has_no_other_entries(make: Any) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.scale = mlp(), nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) * self.scale.exp()

    def train(weight: Tensor, records: bool) -> Any:
        model = Scaled()
        optimizer = make(model.parameters(), lr=0.1)
        with Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY), steps=2) as recorder:
            for _ in range(2):
                optimizer.zero_grad()
                if records:
                    recorder.loss(Batch.of(INPUTS, LABELS), weight).backward()
                else:
                    ((weight * CROSS_ENTROPY(model(INPUTS), LABELS)).sum() / weight.sum()).backward()
                optimizer.step()
            return Truncated(steps=2)(recorder.trajectory(), cross_entropy) if records else cross_entropy(model).item()

    expected = retrained(ONES, lambda w: train(w, False))
    torch.testing.assert_close(train(ONES, True), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("unchecked_shapes")
def test_likely_slips_are_named() -> None:
    model, objective = nn.Linear(4, 2), WeightedLoss(CROSS_ENTROPY)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, objective) as recorder:
        with pytest.raises(TypeError, match=r"batch must be a Batch: Batch.of\(inputs, targets\)"):
            recorder.loss(INPUTS.float(), torch.ones(8))
        with pytest.raises(TypeError, match=r"inputs are torch.float64, the model's parameters torch.float32"):
            recorder.loss(Batch.of(INPUTS, LABELS), torch.ones(8))
        with pytest.raises(
            ValueError, match="sample 2 has the label 2, and the model has outputs for the classes 0 to"
        ):
            recorder.loss(Batch.of(INPUTS.float(), LABELS), torch.ones(8))
        loss = recorder.loss(Batch.of(INPUTS.float(), LABELS % 2), torch.ones(8))
        loss.backward()
        optimizer.step()
        optimizer.step()
        with pytest.raises(RuntimeError, match="once for each optimizer.step"):
            recorder.trajectory()
