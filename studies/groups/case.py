"""One case of the study: a data set, a seed; MAPLE, the groups in its s, and nets trained on what follows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steelyard import reweight
from steelyard._support._modules import evaluating
from steelyard.bilevel import WeightedLoss
from steelyard.experiments import load_recipe
from steelyard.experiments.methods import Maple
from steelyard.experiments.training.problem import Problem, silent

__all__ = ["CASES", "GROUPED", "carry_out"]

_NOISE = "data.corruption.share=0.2"
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "digits": ("coloured_digits/maple", ()),
    "digits, 20 % uniform": ("coloured_digits/maple", ("data.corruption.kind=uniform", _NOISE)),
    "digits, 20 % adversarial": ("coloured_digits/maple", ("data.corruption.kind=adversarial", _NOISE)),
    "digits, 20 % Noisy-Class": ("coloured_digits/maple", ("data.corruption.kind=noisy_class", _NOISE)),
    "digits without colour": ("coloured_digits/maple", ("data.grayscale=true",)),
    "digits, colour by chance": ("coloured_digits/maple", ("data.train_flips=[0.5, 0.5]",)),
    "COMPAS": ("compas/maple", ()),
    "COMPAS, V-REx": ("compas/maple", ("method.risk.penalty=vrex", "method.risk.shape=sqrt")),
    "Adult": ("adult/maple", ()),
}
"""By name: a recipe, and what is set in it."""

GROUPED = tuple(CASES)[:4]
"""The cases with a shortcut, where nets are trained on what follows."""


def carry_out(name: str, seed: int, data_root: Path | None = None) -> dict[str, Any]:
    """Return the figures of a case and a seed as plain numbers by name.

    Args:
        name: of `CASES`.
        seed: of the recipe: data, initial parameters and masks.
        data_root: where COMPAS and Adult lie.
    """
    recipe_name, overrides = CASES[name]
    recipe = load_recipe(recipe_name, overrides, seed=seed)
    problem = Problem(recipe.data.load(recipe.seed, data_root), recipe.model, recipe.seed)
    assert isinstance(recipe.method, Maple)
    fitted = recipe.method.fit(problem, silent)
    result = fitted.reweighting
    assert result is not None
    train, facts = problem.splits.train, problem.splits.facts
    rare = None if name not in GROUPED else ~facts["colour_agrees"]
    row: dict[str, Any] = {"case": name, "seed": seed, "samples": len(train), **_recovered(result, train.targets, rare)}
    if rare is not None:
        row |= _trained(problem, fitted.model, result, recipe.method, facts)
    return row


def _recovered(result: reweight.Reweighting, targets: Tensor, rare: Tensor | None) -> dict[str, Any]:
    """Return whether the test accepts the groups, its figures, and how the two cuts agree with the rare group."""
    found = result.groups(targets, level=1, least_ratio=0)
    row: dict[str, Any] = dict(found.figures())
    try:
        result.groups(targets)
        row["accepted"] = True
    except reweight.OneHumpError:
        row["accepted"] = False
    if rare is not None:
        for cut, high in (("valley", found.high), ("two_means", result.probabilities.double() > found.two_means.at)):
            both = float((high & rare).sum())
            row[f"{cut} precision"] = both / max(1.0, float(high.sum()))
            row[f"{cut} recall"] = both / float(rare.sum())
            row[f"{cut} adjusted Rand"] = reweight.adjusted_rand(high, rare)
    return row


def _trained(
    problem: Problem,
    last: torch.nn.Module,
    result: reweight.Reweighting,
    method: Maple,
    facts: Mapping[str, Tensor],
) -> dict[str, Any]:
    """Return the test accuracy of nets trained as the recipe's inner run, and the wrong labels that they are given.

    Where the groups are refused, what needs them is not tried: these figures are missing.
    """
    train = problem.splits.train
    inner = reweight.InnerRun(
        problem.model, method.inner.optimizer.build, WeightedLoss(problem.loss), method.inner.steps, seed=problem.seed
    )
    ones, rare = torch.ones(len(train)), ~facts["colour_agrees"]
    weights = {
        "ERM": ones,
        "MAPLE, s w": result.expected_weights,
        "known groups, balanced": reweight.balance(ones, 2 * train.targets + rare.long()),
    }
    row: dict[str, Any] = {"MAPLE, last step accuracy": _accuracy(problem, last)}
    try:
        found = result.groups(train.targets)
        weights["found groups, balanced"] = reweight.balance(ones, found.cells)
        refined = reweight.Refine(inner).fit(train, found)
        calibrated = reweight.Refine(inner, rounds=0, shares="calibrated").fit(train, found)
        weights |= {"Refine": refined.expected_weights, "calibrated share": calibrated.expected_weights}
        row["calibrated share of the rare"] = float(calibrated.expected_weights[found.high].sum() / len(train))
    except reweight.OneHumpError:
        pass
    for name, weight in weights.items():
        model, _ = inner.fresh()(train, weight)
        row[f"{name} accuracy"] = _accuracy(problem, model)
        row[f"{name} wrong labels"] = float(weight[facts["label_flipped"]].sum() / weight.sum())
    return row


def _accuracy(problem: Problem, model: torch.nn.Module) -> float:
    """Return the accuracy on the test split."""
    test = problem.splits.test
    with evaluating(model), torch.no_grad():
        return float((problem.head.predict(model(test.inputs)) == test.targets).double().mean())
