"""Windows of several steps of an adaptive optimizer, some of which float32 is too rough for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.bilevel import (
    Batch,
    Recorder,
    RoundingWarning,
    Storage,
    Trajectory,
    Truncated,
    WeightedLoss,
    float64,
    near_float64,
    truncated,
)
from tests.support.problems import CROSS_ENTROPY, relative
from tests.support.widened import widened

WHOLE = Storage()
NEAR, LAST = "forward over reverse, over values of float64", "forward over a record in float64"
STEPS = 3


class Other(nn.Module):
    """Another function in float64: 5 % larger."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` or that."""
        return x if x.dtype == torch.float32 else 1.05 * x


def record(shifts: dict[int, float], before: int = 0, other: bool = False, storage: Storage = WHOLE) -> Trajectory:
    """Take `before` steps, then record three of Adam.

    Args:
        shifts: what is added to the inputs of which step: BatchNorm of values whose spread is a thousandth of their
            size, so that float32 keeps few digits of it.
        before: steps that are not recorded.
        other: the model is another function in float64.
        storage: of the record.
    """
    torch.manual_seed(0)
    last = Other() if other else nn.Identity()
    layers = [nn.Linear(40, 100, bias=False), nn.BatchNorm1d(100), nn.ReLU(), nn.Dropout(0.1), nn.Linear(100, 5), last]
    model, generator = nn.Sequential(*layers), torch.Generator().manual_seed(1)
    weight = 0.5 + torch.rand(12, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(before):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(12, 40, generator=generator)), torch.arange(12) % 5).backward()
        optimizer.step()
    with Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY), steps=STEPS, storage=storage) as recorder:
        for number in range(STEPS):
            inputs = torch.randn(12, 40, generator=generator) + shifts.get(number, 0.0)
            optimizer.zero_grad()
            recorder.loss(Batch.of(inputs, torch.arange(12) % 5), weight).backward()
            optimizer.step()
        return recorder.trajectory()


def outer(model: nn.Module) -> Tensor:
    """Return the loss on other inputs, in the precision of the model."""
    held = torch.randn(12, 40, generator=torch.Generator().manual_seed(9))
    return F.cross_entropy(model(held.to(next(model.parameters()).dtype)), torch.arange(12) % 5)


def expected(run: Trajectory) -> Tensor:
    """Return the hypergradient of the same steps in float64."""
    return Truncated(STEPS)(widened(run), outer)


def error(run: Trajectory, estimator: Truncated) -> float:
    return relative(estimator(run, outer).double(), expected(run))


def test_a_cold_window_is_taken_over_values_of_float64() -> None:
    estimator = Truncated(STEPS)
    assert error(record({}), estimator) < 1e-6
    assert estimator.answered[NEAR] == 2
    assert estimator.answered[LAST] == 1


def test_a_warm_window_is_not() -> None:
    estimator = Truncated(STEPS)
    assert error(record({}, before=20), estimator) < 1e-5
    assert NEAR not in estimator.answered


@pytest.mark.parametrize("place", range(STEPS))
@pytest.mark.parametrize("shift", [100.0, 300.0, 500.0])
def test_any_step_may_be_rough(place: int, shift: float) -> None:
    """The gradient of that step is off by 4e-4, 3e-3 and 1e-2: as much as float32's noise, and as another gradient."""
    assert error(record({place: shift}), Truncated(STEPS)) < 1e-4


@pytest.mark.parametrize("place", range(STEPS))
def test_so_may_one_of_a_warm_window(place: int) -> None:
    assert error(record({place: 100.0}, before=20), Truncated(STEPS)) < 1e-3


def test_where_an_older_step_shows_it_the_newer_ones_are_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    run = record({0: 100.0})
    monkeypatch.setattr(truncated, "is_cold", lambda step: False)
    estimator = Truncated(STEPS)
    assert error(run, estimator) < 1e-4
    assert estimator.answered[NEAR] == 2  # one of them is of the newest step, which float32 is right for
    monkeypatch.setattr(float64, "_ROUGH", 1.0)
    estimator = Truncated(STEPS)
    estimator(run, outer)
    assert NEAR not in estimator.answered


def test_another_gradient_in_float64_is_not_taken_for_a_rough_one() -> None:
    """5 % are no more than a rough step may be off by: over values of float64 the gradient is the recorded one."""
    estimator = Truncated(STEPS)
    with pytest.warns(RoundingWarning):
        estimator(record({}, other=True), outer)
    assert NEAR not in estimator.answered
    assert LAST not in estimator.answered


def test_what_is_not_float64s_is_left_to_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_float64, "GRADIENTS", 0.0)
    estimator = Truncated(STEPS)
    assert error(record({}), estimator) < 1e-6
    assert NEAR not in estimator.answered
    assert estimator.answered["forward over reverse"] == 2
    assert "not that of float64" in estimator.passed_over.get(NEAR, "not that of float64")


def test_an_answer_that_float64_contradicts_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is due, H u is compared with that of float64."""
    real = near_float64.forward_over_reverse

    def wrong(question: near_float64.Question) -> near_float64.Curved:
        found = real(question)
        return found._replace(product={name: 1.01 * one for name, one in found.product.items()})

    monkeypatch.setattr(near_float64, "forward_over_reverse", wrong)
    estimator = Truncated(STEPS)
    assert error(record({}), estimator) < 1e-6
    assert NEAR not in estimator.answered


def test_other_parameters_and_clips_are_right_as_well() -> None:
    """Clipped steps, and a bias before BatchNorm, whose gradient is rounding alone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.BatchNorm1d(30), nn.Tanh(), nn.Linear(30, 5))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY), steps=STEPS) as recorder:
        for number in range(STEPS):
            optimizer.zero_grad()
            inputs = torch.randn(12, 40, generator=torch.Generator().manual_seed(number))
            recorder.loss(Batch.of(inputs, torch.arange(12) % 5), torch.linspace(0.5, 1.5, 12)).backward()
            recorder.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
        run = recorder.trajectory()
    assert error(run, Truncated(STEPS)) < 1e-3


@pytest.mark.parametrize("before", [0, 20])
def test_checkpoints_do_not_look_cold(before: int) -> None:
    """Of a step that is replayed no state is kept; the checkpoint before it tells."""
    whole, replayed = (record({}, before, storage=Storage(checkpoint_every=every)) for every in (1, 2))
    estimators = Truncated(STEPS), Truncated(STEPS)
    one, other = (estimator(run, outer) for estimator, run in zip(estimators, (whole, replayed), strict=True))
    assert torch.equal(one, other)
    assert (NEAR in estimators[1].answered) == (before == 0)


def far_outer(model: nn.Module) -> Tensor:
    """Return the loss on inputs 400 spreads from 0, whose gradient float32 rounds by per cents."""
    held = torch.randn(12, 40, generator=torch.Generator().manual_seed(9)) + 400.0
    return F.cross_entropy(model(held.to(next(model.parameters()).dtype)), torch.arange(12) % 5)


def test_an_outer_gradient_that_float32_rounds_is_taken_in_float64() -> None:
    right, run = Truncated(STEPS)(widened(record({})), far_outer), record({})
    for _ in range(6):
        assert relative(Truncated(STEPS)(run, far_outer).double(), right) < 1e-4


def test_an_outer_loss_that_is_another_function_in_float64_is_not() -> None:
    def other(model: nn.Module) -> Tensor:
        larger = 1.05 if next(model.parameters()).dtype == torch.float64 else 1.0
        return larger * outer(model)

    found = Truncated(STEPS)(record({}), other)
    torch.testing.assert_close(found, Truncated(STEPS)(record({}), outer), rtol=1e-5, atol=1e-9)


def test_an_outer_loss_without_float64_stays_over_its_values() -> None:
    def narrow(model: nn.Module) -> Tensor:
        if next(model.parameters()).dtype == torch.float64:
            raise TypeError("float32 alone")
        return far_outer(model)

    found = Truncated(STEPS)(record({}), narrow)
    torch.testing.assert_close(found, Truncated(STEPS)(record({}), far_outer), rtol=0.2, atol=1e-5)


def test_a_loss_that_float32_is_right_for_is_taken_once_where_no_look_is_due() -> None:
    run, seen = record({}), list[torch.dtype]()

    def noted(model: nn.Module) -> Tensor:
        seen.append(next(model.parameters()).dtype)
        return outer(model)

    counts = []
    for _ in range(4):
        seen.clear()
        Truncated(STEPS)(run, noted)
        counts.append(list(seen))
    wide = [torch.float32, torch.float64]
    assert counts == [wide, wide, [torch.float32], wide]
