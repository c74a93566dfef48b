"""Law one: every optimizer x every hard model against central finite differences in float64."""

from __future__ import annotations

import pytest
import torch

from steelyard.bilevel import FiniteDifference, Truncated
from tests.support import problems
from tests.support.problems import OPTIMIZERS, Problem, relative

# A bias before BatchNorm has a gradient of pure rounding noise (1e-17), which an adaptive optimizer divides by
# |noise| + eps. With eps at its default that noise shows in the finite differences, not in the derivative; a larger
# eps keeps the truth usable. Exactly zero gradients under the default eps are the `dead_unit` cases.
LARGE_EPS = {"batch_norm": 1e-3}

MODELS = ["mlp", "dead_unit", "batch_norm", "cumulative_norm", "dropout", "convolution"]


def problem(model: str, optimizer: str, **kw) -> Problem:
    options = dict(kw.pop("options", {}))
    if model in LARGE_EPS and "eps" in OPTIMIZERS[optimizer][0]([torch.zeros(1)], lr=0.1).defaults:
        options["eps"] = LARGE_EPS[model]
    return Problem(make=getattr(problems, model), optimizer=optimizer, options=options, **kw)


@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_truncated_is_the_derivative_of_the_window(model: str, optimizer: str, warmup: int) -> None:
    case = problem(model, optimizer, warmup=warmup)
    truth = case.truth()
    _, record = case.run(case.start_weight())
    assert truth[record.index].abs().min() > 0  # every sample of the window has an effect that can be missed
    assert relative(case.answer(Truncated(steps=3)), truth) < 1e-6


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("warmup", [0, 4, 6])  # RAdam's sixth step is its first rectified one
@pytest.mark.parametrize("optimizer", [one for one in OPTIMIZERS if one.startswith(("radam", "adamax", "adadelta"))])
def test_rectified_infinite_and_unitless(optimizer: str, warmup: int, steps: int) -> None:
    """At a cold start the true derivative is near eps / |g|^2: a larger eps lets finite differences see it."""
    case = Problem(optimizer=optimizer, warmup=warmup, window=steps, options={"eps": 1e-3})
    assert relative(case.answer(Truncated(steps)), case.truth(step=1e-5)) < 1e-6


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_finite_difference_agrees(optimizer: str) -> None:
    case = problem("batch_norm", optimizer, warmup=1)
    assert relative(case.answer(FiniteDifference(steps=3)), case.answer(Truncated(steps=3))) < 1e-6


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("normalise", ["weights", "batch", "none"])
def test_window_lengths_and_normalisers(steps: int, normalise: str) -> None:
    case = Problem(optimizer="adam-decay", window=steps, normalise=normalise)
    assert relative(case.answer(Truncated(steps=steps)), case.truth()) < 1e-6


@pytest.mark.parametrize("optimizer", ["sgd-nesterov", "adamw", "rmsprop-momentum", "nadam"])
def test_schedule_and_regulariser(optimizer: str) -> None:
    case = Problem(
        optimizer=optimizer,
        schedule=0.6,
        regulariser=lambda model: 0.1 * sum(p.pow(4).sum() for p in model.parameters()),
    )
    assert relative(case.answer(Truncated(steps=3)), case.truth()) < 1e-6


@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adam"])
def test_training_mode_outer_loss(optimizer: str) -> None:
    case = problem("batch_norm", optimizer, evaluation=False)
    assert relative(case.answer(Truncated(steps=3)), case.truth()) < 1e-6


def test_shorter_window_than_recorded_is_the_truncated_derivative() -> None:
    long, short = Problem(window=4, warmup=1), Problem(window=2, warmup=3)
    # The short problem applies the weights in the last two steps only; at unit weights both walk the same path.
    ones = torch.ones(8, dtype=torch.float64)
    _, record = long.run(ones)
    _, reference = short.run(ones)
    ids = torch.arange(8)
    assert torch.allclose(
        Truncated(steps=2)(record, long.outer, ids), Truncated(steps=2)(reference, short.outer, ids), rtol=1e-12
    )


def test_index_selects_orders_and_zeroes() -> None:
    case = Problem()
    _, record = case.run(case.start_weight())
    full = Truncated(steps=3)(record, case.outer, torch.arange(8))
    ids = torch.tensor([5, 2, 99, 5])
    picked = Truncated(steps=3)(record, case.outer, ids)
    assert torch.equal(picked, torch.stack([full[5], full[2], torch.zeros((), dtype=full.dtype), full[5]]))
    assert torch.equal(Truncated(steps=3)(record, case.outer), full[record.index])


def test_adaptive_gradient_is_read_by_reference_or_recomputed() -> None:
    case = Problem(optimizer="adam", window=1)
    model, record = case.run(case.start_weight())
    held = Truncated()(record, case.outer)
    for p in model.parameters():
        p.grad.zero_()  # in place: the reference no longer holds what the step used
    assert torch.allclose(Truncated()(record, case.outer), held, rtol=1e-12)


def test_more_steps_than_recorded_is_an_error() -> None:
    case = Problem(window=2)
    _, record = case.run(case.start_weight())
    with pytest.raises(ValueError, match=r"steps=3, but 2 were recorded"):
        Truncated(steps=3)(record, case.outer)


def test_moved_parameters_are_an_error() -> None:
    case = Problem()
    model, record = case.run(case.start_weight())
    with torch.no_grad():
        model[0].weight.add_(1.0)
    with pytest.raises(RuntimeError, match="'0.weight' was changed after"):
        Truncated(steps=3)(record, case.outer)


@pytest.mark.parametrize(
    ("outer", "message"),
    [
        (lambda model: torch.tensor(float("nan")) * model[0].weight.sum(), "outer is nan"),
        (lambda model: torch.zeros(()), "does not depend on the parameters"),
        (lambda model: model[0].weight, "must return a scalar"),
        (lambda model: 1.0, "must return a scalar"),
    ],
)
def test_bad_outer_losses(outer, message: str) -> None:
    case = Problem()
    _, record = case.run(case.start_weight())
    with pytest.raises((ValueError, FloatingPointError), match=message):
        Truncated(steps=3)(record, outer)


def test_float32_keeps_precision_at_a_cold_start() -> None:
    """dy/dd = eps / (|d| + eps)^2 at a cold start, 1e-8 of its two cancelling terms: rounding must not decide it."""
    exact = Problem(optimizer="adam", window=1, warmup=0)
    single = Problem(optimizer="adam", window=1, warmup=0, dtype=torch.float32)
    assert relative(single.answer(Truncated()).double(), exact.answer(Truncated())) < 1e-3
