"""A tiny problem with a shortcut, known groups, and right labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from steelyard.bilevel.batch import Batch
from steelyard.experiments.data import Splits
from steelyard.experiments.models import MLP, Logistic
from steelyard.experiments.training.problem import Problem


def biased_problem(n: int = 600, agree: float = 0.95, hidden: int = 0, seed: int = 0) -> Problem:
    """Feature 0 has the label's sign and noise; feature 1, larger, has it for `agree` of the training samples.

    Validation and test have the shortcut right for half of the samples. Groups are 2 * label + shortcut. Environments
    are the samples' halves, in which the shortcut is right for `agree` +- 0.04.
    """
    generator = torch.Generator().manual_seed(seed)

    def part(count: int, share: torch.Tensor, environment: torch.Tensor | None = None) -> Batch:
        targets = torch.arange(count) // 2 % 2
        right = torch.rand(count, generator=generator) < share
        shortcut = torch.where(right, targets, 1 - targets)
        signs = torch.stack([2.0 * targets - 1, 3.0 * (2 * shortcut - 1)], 1)
        inputs = signs + torch.tensor([0.6, 0.6]) * torch.randn(count, 2, generator=generator)
        return Batch.of(inputs, targets, environment=environment, group=2 * targets + shortcut)

    halves = torch.arange(n) % 2
    share = agree + torch.tensor([0.04, -0.04])[halves]
    even = torch.full((n,), 0.5)
    splits = Splits(
        "biased", part(n, share, halves), part(n, even, halves), part(n, even), ("no", "yes"), ("first", "second")
    )
    return Problem(splits, MLP(hidden=(hidden,)) if hidden else Logistic(), seed)


def worst_group(problem: Problem, model: torch.nn.Module) -> float:
    """Test accuracy in the worst group."""
    data = problem.splits.test
    with torch.no_grad():
        right = (problem.head.predict(model.eval()(data.inputs)) == data.targets).float()
    assert data.group is not None
    return min(float(right[data.group == g].mean()) for g in range(4))


def plain_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The one-logit loss, written out for tests that check the trainer's."""
    return F.binary_cross_entropy_with_logits(outputs[:, 0], targets.float(), reduction="none")
