"""Out-of-fold residuals, and the probability that a target is right."""

from __future__ import annotations

import math

import pytest
import torch

from steelyard.bilevel import Batch
from steelyard.experiments.data import Splits
from steelyard.experiments.models import Logistic
from steelyard.experiments.priors.out_of_fold import OutOfFoldSettings
from steelyard.experiments.priors.residuals import far_off, out_of_fold_residuals, target_noise
from steelyard.experiments.training.problem import Problem
from steelyard.experiments.training.trainer import OptimizerSettings, Training

WRONG = (3, 20, 41)


def problem(targets: torch.Tensor, inputs: torch.Tensor, others: int = 6) -> Problem:
    """A regression whose last samples are validation."""
    data = Batch.of(inputs, targets, environment=torch.zeros(len(targets), dtype=torch.int64))
    rows = torch.arange(len(targets))
    train, rest = data.take(rows[:-others]), data.take(rows[-others:])
    splits = Splits("line", train, rest, rest, (), ("all",), target_scale=(0.0, 1.0))
    return Problem(splits, Logistic(head="value"), 0)


def line(count: int = 66) -> Problem:
    """Numbers on a line, three of them wrong by far."""
    inputs = torch.linspace(-1, 1, count)[:, None]
    targets = 0.5 + 2 * inputs[:, 0]
    targets[list(WRONG)] += 6.0
    return problem(targets, inputs)


def settings(steps: int = 150) -> OutOfFoldSettings:
    return OutOfFoldSettings(3, 2, training=Training(steps=steps, optimizer=OptimizerSettings("adam", 0.1)))


def test_what_is_far_from_the_line_is_found() -> None:
    told: list[int] = []
    found = out_of_fold_residuals(line(), settings(), told.append, others=line().splits.validation)
    assert told == [1, 2, 3, 4, 5, 6]
    assert set(far_off(found).argsort(descending=True)[:3].tolist()) == set(WRONG)
    assert found.residual[list(WRONG)].mean() == pytest.approx(6, abs=0.6)
    assert found.others is not None
    assert found.others.tolist() == pytest.approx(line().splits.validation.targets.tolist(), abs=0.6)
    right = target_noise(found.residual, line().splits.train.targets).right
    assert (right[list(WRONG)] < 0.01).all()
    assert right.sum() > len(right) - 4


def test_a_sample_has_no_say_in_its_own_prediction() -> None:
    """Where no inputs tell anything, the prediction of a sample is a mean of the others'."""
    targets = torch.tensor([0.0] * 29 + [30.0] + [0.0] * 6)
    alone = problem(targets, torch.zeros(36, 1))
    found = out_of_fold_residuals(alone, settings(300))
    assert found.residual[29] == pytest.approx(30, abs=0.1)
    assert found.predicted.min() > -0.1


def test_fewer_samples_than_folds_are_refused() -> None:
    with pytest.raises(ValueError, match="there are 2 training samples, and each of 3 folds needs one"):
        out_of_fold_residuals(problem(torch.ones(8), torch.zeros(8, 1)), settings())


def test_the_mixture_is_that_of_its_last_step() -> None:
    """At a fixed point the share is the mean of 1 - P(right), and P(right) follows from scale and share by Bayes."""
    generator = torch.Generator().manual_seed(0)
    residual = 0.3 * torch.randn(4000, generator=generator)
    residual[:400] = 8 * torch.rand(400, generator=generator) - 4
    targets = torch.linspace(-4, 4, 4000)
    found = target_noise(residual, targets)
    assert found.scale == pytest.approx(0.3, rel=0.05)
    assert found.share == pytest.approx(0.1, abs=0.015)
    normal = torch.exp(-0.5 * (residual / found.scale) ** 2) / (found.scale * math.sqrt(2 * math.pi))
    fits = (1 - found.share) * normal
    assert torch.allclose(found.right, fits / (fits + found.share / 8), atol=1e-3)


def test_clean_residuals_give_the_scale() -> None:
    clean = torch.tensor([0.5, -0.5, 0.5, -0.5])
    found = target_noise(torch.tensor([0.0, 0.5, 1.0, 5.0]), torch.tensor([0.0, 1.0, 2.0, 10.0]), clean)
    assert found.scale == pytest.approx(0.5)
    assert found.right[0] > found.right[1] > found.right[2] > 0.5 > found.right[3]


@pytest.mark.parametrize("residual", [torch.zeros(5), torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0])], ids=["exact", "spread"])
def test_half_at_most_seem_wrong(residual: torch.Tensor) -> None:
    found = target_noise(residual, torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0]))
    assert found.right.isfinite().all()
    assert 0 <= found.share <= 0.6
