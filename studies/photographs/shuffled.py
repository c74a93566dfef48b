"""What learned weights are worth beyond the groups' shares: the same weights, dealt out again within each group."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from steelyard.experiments.methods import Maple
from steelyard.experiments.runs.recipe import Recipe
from steelyard.experiments.training.problem import Fitted, Problem

__all__ = ["shuffled_weights", "within_groups"]


def shuffled_weights(recipe: Recipe, problem: Problem, fitted: Fitted) -> nn.Module | None:
    """Return a model trained as MAPLE's inner run under its expected weights, shuffled within the groups.

    None of another method, where the groups of training samples are not known, or where one inner run is not a whole
    training, for each goes on where the last one ended.
    """
    group = problem.splits.train.group
    if not isinstance(recipe.method, Maple) or fitted.reweighting is None or group is None:
        return None
    if not recipe.method.inner.restart:
        return None
    weights = within_groups(fitted.reweighting.expected_weights, group, torch.Generator().manual_seed(problem.seed))
    model, _ = recipe.method.inner_run(problem)(problem.splits.train, weights)
    return model


def within_groups(
    weights: Float[Tensor, " n"], groups: Int[Tensor, " n"], generator: torch.Generator
) -> Float[Tensor, " n"]:
    """Return the weights, each group's own in random order: every group keeps its mass.

    Example:
        >>> found = within_groups(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([0, 0, 1]), torch.Generator())
        >>> sorted(found[:2].tolist()), found[2].item()
        ([1.0, 2.0], 5.0)
    """
    found = weights.clone()
    for group in groups.unique().tolist():
        rows = (groups == group).nonzero().flatten()
        found[rows] = weights[rows[torch.randperm(len(rows), generator=generator).to(rows.device)]]
    return found
