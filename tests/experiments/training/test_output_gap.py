"""The best scale and bias of a logit against scikit-learn, and the gap's gradient against differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from steelyard.bilevel.batch import Batch
from steelyard.experiments.models import HEADS
from steelyard.experiments.training.output_gap import OutputGap, scale_and_bias

LOSS = HEADS["one_logit"].loss
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(60, 1, generator=GENERATOR, dtype=torch.float64)
TARGETS = (torch.rand(60, generator=GENERATOR) < torch.sigmoid(LOGITS[:, 0] - 0.5)).long()
PLACES = torch.arange(60) % 3
BATCH = Batch.of(LOGITS, TARGETS, environment=PLACES)


@pytest.mark.parametrize("factor", [0.01, 1.0, 300.0, -1.0])
def test_the_optimum_is_that_of_a_logistic_regression(factor: float) -> None:
    found = scale_and_bias(factor * LOGITS[:, 0], TARGETS)
    fitted = LogisticRegression(C=1e10, tol=1e-10, max_iter=1000).fit(LOGITS.numpy(), TARGETS.numpy())
    assert float(found[0]) * factor == pytest.approx(float(fitted.coef_[0, 0]), rel=1e-4)
    assert float(found[1]) == pytest.approx(float(fitted.intercept_[0]), rel=1e-4)


def test_it_is_never_worse_than_the_logit_itself() -> None:
    for logits, targets in (
        (torch.tensor([1.0, 2.0, -1.0]), torch.tensor([1, 1, 0])),  # a threshold separates them
        (torch.zeros(4), torch.tensor([1, 0, 0, 0])),
        (torch.tensor([0.3]), torch.tensor([1])),
        (torch.tensor([1e4, -1e4]), torch.tensor([0, 1])),
    ):
        scale, bias = scale_and_bias(logits, targets).tolist()
        labels = targets.double()
        moved, plain = (F.binary_cross_entropy_with_logits(z.double(), labels) for z in (scale * logits + bias, logits))
        assert np.isfinite([scale, bias]).all()
        assert float(moved) <= float(plain)


def test_the_gap_is_what_environments_gain_and_zero_where_they_are_calibrated() -> None:
    value = OutputGap()(LOGITS, BATCH, LOSS)
    gain = 0.0
    for place in range(3):
        z, y = LOGITS[place == PLACES], TARGETS[place == PLACES]
        scale, bias = scale_and_bias(z[:, 0], y)
        gain += float((LOSS(z, y) - LOSS(scale * z + bias, y)).sum()) / 60
    assert float(value) == pytest.approx(gain)
    assert float(value) > 0
    calibrated = LOGITS.clone()
    for place in range(3):
        scale, bias = scale_and_bias(LOGITS[place == PLACES, 0], TARGETS[place == PLACES])
        calibrated[place == PLACES] = scale * LOGITS[place == PLACES] + bias
    assert float(OutputGap()(calibrated, BATCH, LOSS)) == pytest.approx(0, abs=1e-10)


def test_the_gradient_with_the_optimum_held_is_that_of_differences() -> None:
    assert torch.autograd.gradcheck(lambda z: OutputGap()(z, BATCH, LOSS), LOGITS.clone().requires_grad_())


def test_what_it_needs_is_said() -> None:
    with pytest.raises(ValueError, match=r"needs environment ids, but batch\.environment is None"):
        OutputGap()(LOGITS, Batch.of(LOGITS, TARGETS), LOSS)
    with pytest.raises(ValueError, match=r"of one logit, outputs \(n, 1\), got \(60, 2\)"):
        OutputGap()(LOGITS.expand(60, 2), BATCH, LOSS)
