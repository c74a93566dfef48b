"""Weights that the samples of a source share: the derivative is summed over them, and is that of training again."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from steelyard.bilevel import Batch, FiniteDifference, Recorder, Truncated, Unrolled, WeightedLoss
from steelyard.checkpoint import Journal
from steelyard.reweight import InnerRun, Maple, MeanRisk, OuterRisk, OuterStep, Prior, Shared, Sqrt, VREx
from tests.support.environments import CROSS_ENTROPY, linear_run, spurious
from tests.support.problems import mlp, relative

SOURCE = torch.tensor([0, 2, 1, 0, 0, 1, 2, 2])
START = torch.tensor([0.7, 1.3, 0.4], dtype=torch.float64)


def samples() -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch.of(
        torch.randn(8, 4, generator=generator, dtype=torch.float64), torch.randint(0, 3, (8,), generator=generator)
    )


def outer(model: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    return F.cross_entropy(model(inputs), torch.arange(6) % 3)


def loop(weight: torch.Tensor, window: int, kind: str = "adam") -> Any:
    """A user's loop; the weights of the sources act inside of the window."""
    sources, data = Shared(SOURCE), samples()
    torch.manual_seed(0)
    model = mlp().double()
    if kind == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(4)
    with Recorder(model, optimizer, WeightedLoss(CROSS_ENTROPY), window, full_state=True) as recorder:
        for number in range(2 + window):
            batch = data.take(torch.randint(0, 8, (5,), generator=generator))
            used = weight if number >= 2 else torch.ones_like(weight)
            loss = recorder.loss(batch, sources.expand(used, batch.index))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return model, recorder.trajectory()


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize(
    ("estimator", "kind"), [(Truncated, "adam"), (FiniteDifference, "adam"), (Truncated, "sgd"), (Unrolled, "sgd")]
)
def test_the_derivative_is_that_of_training_again(window: int, estimator: Any, kind: str) -> None:
    _, record = loop(START, window, kind)
    found = Shared(SOURCE).derivative(estimator(steps=window), record, outer)
    truth = torch.zeros(3, dtype=torch.float64)
    for number in range(3):
        for step in (1e-6, -1e-6):
            moved = START.clone()
            moved[number] += step
            model, _ = loop(moved, window, kind)
            truth[number] += outer(model).detach() / (2 * step)
    assert relative(found, truth) < 1e-6


def test_weights_that_require_a_gradient_get_the_same_one_by_hand() -> None:
    sources, weight = Shared(SOURCE), START.clone().requires_grad_()
    _, record = loop(weight.detach(), 3)
    sources.expand(weight, record.index).backward(Truncated(3)(record, outer))
    torch.testing.assert_close(weight.grad, sources.derivative(Truncated(3), record, outer))


def test_sum_is_expand_transposed_and_mean_divides_it() -> None:
    sources, generator = Shared(SOURCE, count=4), torch.Generator().manual_seed(0)
    index = torch.tensor([7, 0, 0, 3, 5])
    weight, values = (torch.rand(size, generator=generator, dtype=torch.float64) for size in (4, 5))
    assert torch.dot(sources.expand(weight, index), values) == pytest.approx(
        float(torch.dot(weight, sources.sum(values, index)))
    )
    mean = sources.mean(values, index)
    torch.testing.assert_close(mean[0], values[1:4].mean())
    assert mean[3].isnan()
    assert sources.sum(values[:0], index[:0]).tolist() == [0.0] * 4


def maple_run(shared: Shared | None = None, **options: Any) -> Maple:
    options = {"learn": "weights", "radius": 1e9, "steps": 1, **options}
    return Maple(linear_run(steps=5, lr=0.5), MeanRisk(), shared=shared, **options)


@pytest.mark.parametrize("start", [None, START])
def test_an_outer_step_goes_down_the_derivative_of_training_again(start: torch.Tensor | None) -> None:
    train, validation = spurious(40)[0], spurious(30, seed=5)[0]
    sources = Shared(torch.arange(40) % 3)
    plain = partial(torch.optim.SGD, lr=0.1)
    maple = maple_run(sources, weight_optimizer=plain, schedule=lambda progress: 1.0)
    state = maple.begin(train)
    before = torch.ones(3, dtype=torch.float64) if start is None else start
    with torch.no_grad():
        state.weights.copy_(sources.expand(before, train.index))
    result = maple.fit(train, validation, state=state)

    def risk(weight: torch.Tensor) -> float:
        """Of the weights in the last of the steps alone, as with T = 1."""
        inner = InnerRun(*linear_parts(), steps=5)
        used = [sources.expand(before, train.index)] * 4 + [sources.expand(weight, train.index)]
        model = trained(inner, train, used)
        return float(OuterRisk(MeanRisk(), validation, CROSS_ENTROPY)(model).detach())

    truth = torch.zeros(3, dtype=torch.float64)
    for number in range(3):
        for step in (1e-6, -1e-6):
            moved = before.clone()
            moved[number] += step
            truth[number] += risk(moved) / (2 * step)
    moved = sources.mean(result.weights, result.index)
    assert relative((before - moved) / 0.1, truth) < 1e-6
    assert result.history[0]["weights_gradient_norm"] == pytest.approx(float(truth.norm()))
    torch.testing.assert_close(result.weights, sources.expand(moved, train.index))


def linear_parts() -> Any:
    return (
        lambda: torch.nn.Linear(2, 2, dtype=torch.float64),
        partial(torch.optim.SGD, lr=0.5, momentum=0.9),
        WeightedLoss(CROSS_ENTROPY),
    )


def trained(inner: InnerRun, train: Batch, weights: list[torch.Tensor]) -> torch.nn.Module:
    """Plain training from the inner run's start, full batches, with the weights of each step."""
    model = inner.initial(train.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for weight in weights:
        optimizer.zero_grad()
        ((weight * CROSS_ENTROPY(model(train.inputs), train.targets)).sum() / weight.sum()).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("options", [{"learn": "weights"}, {"draws": 2, "clip": 0.01}, {"folds": 2}])
def test_weights_stay_equal_within_a_source_and_move_apart_between_them(options: dict[str, Any]) -> None:
    train = spurious(60)[0]
    sources = Shared(torch.arange(60) % 3)
    settings = {"learn": "both", "budget": 30, "steps": 4, **options}
    seen = []

    def look(step: OuterStep) -> None:
        seen.append(step.weights)

    maple = Maple(linear_run(steps=5, batch_size=16), Sqrt(VREx()), shared=sources, **settings)
    result = maple.fit(train, None, [look])
    for weights in (*seen, result.weights):
        each = sources.mean(weights, result.index)
        torch.testing.assert_close(weights, sources.expand(each, result.index), rtol=1e-12, atol=0.0)
    assert len(each.unique()) == 3
    assert result.history[-1]["weights_gradient_norm"] > 0


def test_a_journal_of_other_sources_is_refused(tmp_path: Any) -> None:
    train, source = spurious(60)[0], torch.arange(60) % 3

    def fit(source: torch.Tensor) -> Any:
        maple = Maple(linear_run(steps=3), Sqrt(VREx()), budget=30, steps=2, shared=Shared(source))
        return maple.fit(train, journal=Journal(tmp_path / "run.safetensors", every=1))

    result = fit(source)
    assert fit(source.int()) == result
    with pytest.raises(ValueError, match="its shared is"):
        fit(source.flip(0))


@pytest.mark.usefixtures("unchecked_shapes")
def test_what_does_not_fit_is_named() -> None:
    sources = Shared([0, 1, 1])
    assert (sources.count, sources.source.tolist()) == (2, [0, 1, 1])
    assert Shared(np.array([True, False])).source.tolist() == [1, 0]
    cases: dict[str, Any] = {
        r"source must hold numbers 0 \.\. 1, got 2": lambda: Shared([0, 2], count=2),
        r"source must hold numbers 0 \.\. 1, got -1": lambda: Shared([-1, 1]),
        "source must name the source of at least one sample": lambda: Shared(torch.zeros(0, dtype=torch.long)),
        "source must hold integers, got torch.float32": lambda: Shared(torch.tensor([0.5])),
        "source must be a tensor": lambda: Shared(["a", "b"]),
        "weight must have an entry for each of the 2 sources, got 3": lambda: sources.expand([1.0, 2.0, 3.0], [0]),
        r"source is of the samples 0 \.\. 2, but index has 5: give the source": lambda: sources.expand([1.0, 2.0], [5]),
        "these need the same first dimension: values has 3, index has 1": lambda: sources.sum(torch.ones(3), [0]),
        "shared must be a Shared": lambda: maple_run([0, 1]),  # type: ignore[arg-type]
        "shared is of the weights, but learn='probabilities'": lambda: Maple(
            linear_run(), MeanRisk(), budget=2, steps=1, learn="probabilities", shared=sources
        ),
        "prior.start='both' starts each sample at a weight of its own": lambda: maple_run(
            sources, prior=Prior(torch.full((3,), 0.5), start="both")
        ),
        r"source is of the samples 0 \.\. 2, but index has 9": lambda: maple_run(sources).fit(spurious(10)[0]),
    }
    for message, call in cases.items():
        with pytest.raises((ValueError, TypeError), match=message):
            call()
    maple = maple_run(Shared(torch.arange(10) % 2))
    state = maple.begin(spurious(10)[0])
    with torch.no_grad():
        state.weights[3] = 2.0
    with pytest.raises(ValueError, match=r"state\.weights must be equal within each source, but source 1 has 1"):
        maple.fit(spurious(10)[0], state=state)
