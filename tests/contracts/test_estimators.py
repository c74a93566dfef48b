"""What every estimator of `steelyard.bilevel` has in common: the derivative asked for, and nothing moved."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steelyard import bilevel
from steelyard.bilevel import FiniteDifference, Implicit, Trajectory, Truncated, Unrolled
from tests.support.problems import Problem, relative

Estimator = Callable[..., Tensor]

ESTIMATORS: dict[str, Callable[[], Estimator]] = {
    "FiniteDifference": lambda: FiniteDifference(),
    "Implicit": lambda: Implicit(damping=1.0),
    "Truncated": lambda: Truncated(steps=3),
    "Unrolled": lambda: Unrolled(steps=3, backend="torch"),
}
STEPS = {"FiniteDifference": 1, "Truncated": 3, "Unrolled": 3}
"""How many of the last steps each claims to be exact through; `Implicit` claims a fixed point instead."""
PROBLEM = Problem(optimizer="adam", full_state=True)
INDEX = torch.arange(8)


@pytest.fixture(scope="module")
def recorded() -> tuple[nn.Module, Trajectory]:
    return PROBLEM.run(PROBLEM.start_weight())


def ask(name: str, trajectory: Trajectory, outer: Any = PROBLEM.outer, index: Tensor = INDEX) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bilevel.SolverWarning)  # three steps are no fixed point
        return ESTIMATORS[name]()(trajectory, outer, index)


def test_every_estimator_is_here() -> None:
    members = {name: getattr(bilevel, name) for name in bilevel.__all__}
    calls = {name: vars(one).get("__call__") for name, one in members.items() if isinstance(one, type)}
    takes = {name for name, call in calls.items() if call and "trajectory" in inspect.signature(call).parameters}
    assert set(ESTIMATORS) == takes | {"FiniteDifference"}  # which is a `Truncated`


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adam", "adamw", "rmsprop"])
def test_it_is_the_derivative_of_retraining(name: str, optimizer: str) -> None:
    problem = replace(PROBLEM, optimizer=optimizer, window=STEPS[name])
    assert relative(problem.answer(ESTIMATORS[name]()), problem.truth()) < 1e-6


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_finite_number_a_sample_in_the_type_of_the_weights(name: str, recorded: tuple[nn.Module, Trajectory]) -> None:
    found = ask(name, recorded[1])
    assert found.shape == (8,)
    assert found.dtype == torch.float64
    assert found.isfinite().all()
    assert not found.requires_grad


@pytest.mark.parametrize("name", ESTIMATORS)
def test_asked_again_it_answers_the_same(name: str, recorded: tuple[nn.Module, Trajectory]) -> None:
    assert torch.equal(ask(name, recorded[1]), ask(name, recorded[1]))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_answer_is_in_the_order_of_the_index(name: str, recorded: tuple[nn.Module, Trajectory]) -> None:
    some = torch.tensor([6, 2, 5])
    torch.testing.assert_close(ask(name, recorded[1], index=some), ask(name, recorded[1])[some])


@pytest.mark.parametrize("name", ESTIMATORS)
def test_it_is_linear_in_the_outer_loss(name: str, recorded: tuple[nn.Module, Trajectory]) -> None:
    def other(model: nn.Module) -> Tensor:
        return sum(p.square().sum() for p in model.parameters())  # type: ignore[return-value]

    total = ask(name, recorded[1], lambda m: 2 * PROBLEM.outer(m) - 0.5 * other(m))
    torch.testing.assert_close(
        total, 2 * ask(name, recorded[1]) - 0.5 * ask(name, recorded[1], other), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_model_stays_as_it_is(name: str, recorded: tuple[nn.Module, Trajectory]) -> None:
    model, trajectory = recorded
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    ask(name, trajectory)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_sample_that_never_came_has_no_share(name: str, recorded: tuple[nn.Module, Trajectory]) -> None:
    assert ask(name, recorded[1], index=torch.tensor([99, 2])).tolist()[0] == 0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_outer_loss_that_is_none_is_refused(name: str, recorded: tuple[nn.Module, Trajectory]) -> None:
    for outer in (lambda m: 1.0, lambda m: next(m.parameters()), lambda m: next(m.parameters()).sum() * torch.nan):
        with pytest.raises((ValueError, TypeError, FloatingPointError), match="outer"):
            ask(name, recorded[1], outer)


def test_a_record_says_what_it_is_of_in_a_line(recorded: tuple[nn.Module, Trajectory]) -> None:
    assert repr(recorded[1]) == "Trajectory(3 steps of Adam, 7 samples, 4 parameter tensors of Sequential)"
