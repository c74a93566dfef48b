"""The influence of a sample is what retraining with another weight would do to the risk."""

from __future__ import annotations

import pytest
import torch

from steelyard.bilevel import Batch, Truncated
from steelyard.reweight import Sqrt, VREx, influence, keep_probabilities
from steelyard.selectors import top_k
from tests.support.environments import CROSS_ENTROPY, linear_run, spurious


@pytest.fixture
def data() -> tuple[Batch, Batch]:
    train, _ = spurious()
    return train.take(torch.arange(20)), train.take(torch.arange(100, 140))


def test_it_is_minus_the_derivative_of_training_again(data) -> None:
    train, validation = data
    steps, width = 6, 1e-5
    found = influence(linear_run(steps=steps, window=steps), train, validation)
    assert found.shape == (20,)
    assert found.dtype == torch.float64

    def risk(weight: torch.Tensor) -> float:
        model, _ = linear_run(steps=steps)(train, weight)
        return CROSS_ENTROPY(model(validation.inputs), validation.targets).mean().item()

    for i in (0, 7, 19):
        move = torch.zeros(20, dtype=torch.float64)
        move[i] = width
        expected = -(risk(1 + move) - risk(1 - move)) / (2 * width)
        assert float(found[i]) == pytest.approx(expected, rel=1e-5, abs=1e-10)


def test_by_the_last_step_all_samples_have_one_wherever_they_were(data) -> None:
    train, validation = data
    found = influence(linear_run(steps=5, batch_size=4), train, validation)
    assert (found != 0).all()
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    whole = influence(linear_run(steps=5), train, validation)
    torch.testing.assert_close(influence(linear_run(steps=5), train.take(order), validation), whole[order])
    torch.testing.assert_close(
        influence(linear_run(steps=5), train, validation, estimator=Truncated(), outer_chunk=7), whole
    )


def test_of_another_risk(data) -> None:
    train, validation = data
    found = influence(linear_run(steps=5), train, validation, risk=Sqrt(VREx()))
    assert (found - influence(linear_run(steps=5), train, validation)).abs().max() > 1e-6


def test_wrong_labels_are_kept_last() -> None:
    source = torch.Generator().manual_seed(3)
    x = torch.randn(60, 2, generator=source, dtype=torch.float64)
    y = (x[:, 0] > 0).long()
    given = y.clone()
    wrong = x[:30, 0].abs().topk(3).indices
    given[wrong] = 1 - given[wrong]
    found = influence(linear_run(steps=30), Batch.of(x[:30], given[:30]), Batch.of(x[30:], y[30:]))
    assert set(found.argsort()[:3].tolist()) == set(wrong.tolist())
    assert not set(wrong.tolist()) & set(top_k(found, 20, of="influence").tolist())
    assert float(keep_probabilities(found, 15.0, of="influence")[wrong].max()) < 0.5


@pytest.mark.usefixtures("unchecked_shapes")
def test_what_is_no_risk(data) -> None:
    train, validation = data
    with pytest.raises(TypeError, match="risk must be a Risk, such as MeanRisk"):
        influence(linear_run(), train, validation, risk=CROSS_ENTROPY)
    with pytest.raises(TypeError, match="estimator must be an estimator, such as Truncated"):
        influence(linear_run(), train, validation, estimator=3)
    with pytest.raises(TypeError, match="inner must be an InnerRun"):
        influence(None, train, validation)
