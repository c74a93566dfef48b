"""MAPLE on samples that are not in memory: the result of those that are."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from steelyard.bilevel import Streamed, Truncated
from steelyard.reweight import CrossFit, Maple, OuterRisk, Sqrt, VREx
from tests.support.counted import Counted
from tests.support.environments import CROSS_ENTROPY, linear_run, spurious

RISK = Sqrt(VREx())


def as_stream(data, chunk):
    dataset = Counted(data.inputs)
    return Streamed.of(dataset, data.targets, environment=data.environment, chunk=chunk), dataset


@pytest.mark.parametrize("options", [{}, {"folds": 2}, {"draws": 2}, {"learn": "weights"}])
@pytest.mark.parametrize("batch_size", [None, 16])
def test_the_result_is_bit_for_bit_that_of_a_batch(options, batch_size) -> None:
    """With chunks as large as the data every matrix product is the same, of runs that are trained one by one."""
    data, _ = spurious(200)
    stream, _ = as_stream(data, 200)
    maple = partial(Maple, risk=RISK, budget=60, steps=3, outer_chunk=200, together=False, **options)
    inner = partial(linear_run, steps=9, lr=0.3, batch_size=batch_size)
    validation, _ = spurious(60, seed=5)
    outside = () if "folds" in options else (validation,)
    expected = maple(inner()).fit(data, *outside)
    before = torch.get_rng_state()
    assert maple(inner()).fit(stream, *outside) == expected
    assert torch.equal(torch.get_rng_state(), before)
    assert max((expected.probabilities - 0.3).abs().max(), (expected.weights - 1).abs().max()) > 1e-3


def test_small_chunks_change_rounding_alone_and_no_more_is_read_at_once() -> None:
    data, _ = spurious(200)
    stream, dataset = as_stream(data, 32)
    expected = Maple(linear_run(steps=9, lr=0.3, batch_size=16), RISK, budget=60, steps=3).fit(data)
    found = Maple(linear_run(steps=9, lr=0.3, batch_size=16), RISK, budget=60, steps=3).fit(stream)
    torch.testing.assert_close(found.probabilities, expected.probabilities, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.weights, expected.weights, rtol=1e-9, atol=1e-12)
    assert max(dataset.asked) == 32


def test_without_a_batch_size_the_kept_samples_are_gathered_in_chunks() -> None:
    data, _ = spurious(100)
    stream, dataset = as_stream(data, 8)
    weight = (torch.arange(100) % 3 == 0).double()
    model, trajectory = linear_run(steps=3)(stream, weight)
    other, _ = linear_run(steps=3)(data, weight)
    assert torch.equal(trajectory.steps[0].batch.inputs, data.inputs[weight > 0])
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))
    assert max(dataset.asked) == 8
    everything, _ = linear_run(steps=3)(stream, torch.ones(100, dtype=torch.float64))
    assert all(bool(torch.isfinite(p).all()) for p in everything.parameters())


@pytest.mark.parametrize("chunk", [None, 7])
def test_the_risk_of_a_stream_and_its_gradient(chunk) -> None:
    data, _ = spurious(50)
    stream, dataset = as_stream(data, 20)
    model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    parameters = list(model.parameters())
    expected = torch.autograd.grad(OuterRisk(RISK, data, CROSS_ENTROPY)(model), parameters)
    dataset.asked.clear()
    found = torch.autograd.grad(OuterRisk(RISK, stream, CROSS_ENTROPY, chunk)(model), parameters)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)
    assert max(dataset.asked) == (chunk or 20)
    assert sum(dataset.asked) == 2 * 50  # read once more for the way back


def test_the_way_back_is_loaded_ahead_in_its_own_order(monkeypatch) -> None:
    """By the stream that evaluation has, whose workers go ahead; a part alone, or a second time, works too."""
    data, _ = spurious(50)
    stream, dataset = as_stream(data, 20)
    layer = torch.nn.Linear(2, 2).double()
    risk = OuterRisk(RISK, stream, CROSS_ENTROPY)
    expected = torch.autograd.grad(OuterRisk(RISK, data, CROSS_ENTROPY)(layer), layer.weight)
    outputs = risk.outputs(layer, stream)
    (alone,) = torch.autograd.grad(outputs[20:40].sum(), layer.weight, retain_graph=True)
    torch.testing.assert_close(alone, data.inputs[20:40].sum(0).expand(2, -1))
    monkeypatch.setattr(type(stream), "take", lambda *unused: pytest.fail("loaded by itself"))
    dataset.asked.clear()
    value = risk.of(outputs)
    for _ in range(2):
        found = torch.autograd.grad(value, layer.weight, retain_graph=True)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)
    assert dataset.asked == [10, 20, 20, 10, 20, 20]


def test_cross_fitting_a_stream_holds_no_fold_in_memory() -> None:
    data, _ = spurious(80)
    stream, dataset = as_stream(data, 10)
    weight = torch.ones(80, dtype=torch.float64)

    def gradient(samples):
        fit = CrossFit(linear_run(steps=4, lr=0.3, batch_size=16), 2)
        risk = OuterRisk(RISK, samples, CROSS_ENTROPY)
        return fit(Truncated(), risk, samples, weight, torch.Generator().manual_seed(0)).gradient

    expected = gradient(data)
    dataset.asked.clear()
    torch.testing.assert_close(gradient(stream), expected, rtol=1e-10, atol=1e-15)
    assert max(dataset.asked) == 16


def test_a_nan_in_a_stream_is_named() -> None:
    data, _ = spurious(60)
    data.inputs[41, 1] = float("nan")
    stream, _ = as_stream(data, 16)
    with pytest.raises(FloatingPointError, match=r"outer step 1: .* inputs of sample 41"):
        Maple(linear_run(steps=2, batch_size=8), RISK, budget=20, steps=1).fit(stream)
    validation, _ = spurious(60, seed=5)
    with pytest.raises(FloatingPointError, match="the inputs of sample 41"):
        Maple(linear_run(steps=1, batch_size=1, seed=3), RISK, budget=1, steps=1, learn="weights").fit(
            stream, validation
        )
