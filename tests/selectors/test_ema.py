"""The moving average: both decays, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from steelyard.selectors import ema


def updated(average, model, values) -> float:
    for value in values:
        nn.init.constant_(model.weight, value)
        average.update_parameters(model)
    return average.module.weight.item()


def test_plain_decay() -> None:
    model = nn.Linear(1, 1, bias=False)
    expected = 1.0
    for value in (2.0, 5.0, -1.0):
        expected = 0.9 * expected + 0.1 * value
    assert updated(ema(model, 0.9), model, (1.0, 2.0, 5.0, -1.0)) == pytest.approx(expected, rel=1e-6)


def test_bias_correction_is_the_mean_until_the_decay() -> None:
    model = nn.Linear(1, 1, bias=False)
    assert updated(ema(model, 0.999, bias_corrected=True), model, range(10)) == pytest.approx(4.5, rel=1e-6)
    # With decay 0.75 the fifth value has 1 - 1/5 = 0.8 > 0.75: from there on it is the plain average.
    expected = sum(range(4)) / 4
    for value in (4.0, 5.0):
        expected = 0.75 * expected + 0.25 * value
    assert updated(ema(model, 0.75, bias_corrected=True), model, range(6)) == pytest.approx(expected, rel=1e-6)


def test_buffers_and_state() -> None:
    model = nn.BatchNorm1d(1)
    average = ema(model, 0.5)
    for shift in (0.0, 10.0):
        model(torch.tensor([[shift - 1], [shift + 1]]))
        average.update_parameters(model)
    assert int(average.module.num_batches_tracked) == 2  # copied
    assert average.module.running_mean.item() == pytest.approx(0.5)  # averaged: (0 + 1) / 2
    again = ema(nn.BatchNorm1d(1), 0.5)
    again.load_state_dict(average.state_dict())
    assert int(again.n_averaged) == 2
    assert not any(p.grad is not None for p in average.parameters())
