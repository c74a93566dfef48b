"""`python -m studies.groups.hint`: does `easy_contradictions` tell chosen wrong labels from honest ones?"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from steelyard.bilevel import Batch, WeightedLoss
from steelyard.cli.options import check_seeds
from steelyard.experiments import load_recipe
from steelyard.experiments.data.corruption import adversarial_flips, uniform_flips
from steelyard.experiments.methods import Maple
from steelyard.experiments.training.problem import Problem
from steelyard.reweight import InnerRun, balance
from steelyard.reweight.contradictions import easy_contradictions
from steelyard.reweight.cross_scores import cross_fit_scores
from studies._command import command_line

__all__ = ["KINDS", "SETS", "figure", "main"]

SETS = ("coloured digits", "breast cancer", "odd or even")
KINDS = ("none", "uniform", "adversarial")
_SHARE = 0.2  # of the labels that are made wrong


def hint(seeds: tuple[int, ...] = (310, 311, 312, 313, 314), sets: tuple[str, ...] = SETS) -> None:
    """Print the figure of each data set, corruption and seed; groups are the known ones, weights balanced.

    Args:
        seeds: of data, labels and nets.
        sets: which data sets.
    """
    check_seeds("--seeds", seeds)
    console = Console()
    for name in sets:
        for kind in KINDS:
            figures = (f"{figure(name, kind, seed):.3f}" for seed in seeds)
            console.print(name, kind, *figures, markup=False, highlight=False)


def figure(name: str, kind: str, seed: int) -> float:
    """Return `easy_contradictions` of a data set of `SETS` under a corruption of `KINDS`."""
    inner, train, rare = _digits(kind, seed) if name == SETS[0] else _planted(name, kind, seed)
    weights = balance(torch.ones(len(train)), 2 * train.targets + rare.long())
    scores = cross_fit_scores(inner, train, weights, folds=4, repeats=1, seed=seed)
    return easy_contradictions(train, weights, scores.label_probability < 0.5)


def _digits(kind: str, seed: int) -> tuple[InnerRun, Batch, Tensor]:
    """Return an inner run, training samples and who contradicts the colour, of coloured digits."""
    share = [] if kind == "none" else [f"data.corruption.kind={kind}", f"data.corruption.share={_SHARE}"]
    recipe = load_recipe("coloured_digits/maple", share, seed=seed)
    assert isinstance(recipe.method, Maple)
    problem = Problem(recipe.data.load(seed, None), recipe.model, seed)
    return recipe.method.inner_run(problem), problem.splits.train, ~problem.splits.facts["colour_agrees"]


def _planted(name: str, kind: str, seed: int) -> tuple[InnerRun, Batch, Tensor]:
    """Return the same of a data set of scikit-learn with one more column, which agrees with 85 % of the labels."""
    from sklearn.datasets import load_breast_cancer, load_digits

    inputs, labels = map(torch.tensor, (load_digits if name == SETS[2] else load_breast_cancer)(return_X_y=True))
    labels, inputs = (labels % 2 if name == SETS[2] else labels).long(), inputs.float()
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(inputs), generator=draw)
    inputs, labels = inputs[order], labels[order]
    inputs = (inputs - inputs.mean(0)) / inputs.std(0).clamp_min(1e-6) * 4 / math.sqrt(inputs.shape[1])
    count = len(inputs) * 2 // 3  # the rest was a test split, where the column agrees with 10 %
    agreement = torch.where(torch.arange(len(inputs)) < count, 0.85, 0.1)
    agrees = torch.rand(len(inputs), generator=draw) < agreement
    column = torch.where(agrees, 2 * labels - 1, 1 - 2 * labels).float()[:count]
    train, right = torch.cat([inputs[:count], column[:, None]], 1), labels[:count]
    given = _corrupted(train, right, kind, draw)
    width = train.shape[1]

    def model() -> torch.nn.Module:
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Linear(width, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))

    loss = WeightedLoss(partial(F.cross_entropy, reduction="none"))
    inner = InnerRun(model, partial(torch.optim.SGD, lr=0.1, momentum=0.9), loss, 100, seed=seed)
    return inner, Batch.of(train, given), (2 * given - 1).float() != column


def _corrupted(inputs: Tensor, labels: Tensor, kind: str, draw: torch.Generator) -> Tensor:
    """Return labels of which a fifth is wrong: at random, or those that a ridge regression is surest of."""
    if kind == "none":
        return labels
    if kind == "uniform":
        return uniform_flips(labels, 2, _SHARE, draw)[0]
    rows = torch.cat([inputs.double(), torch.ones(len(inputs), 1, dtype=torch.float64)], 1)
    square = rows.T @ rows / len(rows) + 1e-3 * torch.eye(rows.shape[1], dtype=torch.float64)
    outputs = rows @ torch.linalg.solve(square, rows.T @ (2 * labels.double() - 1) / len(rows))
    chance = torch.sigmoid(2 * outputs).float()
    return adversarial_flips(torch.stack([1 - chance, chance], 1), labels, _SHARE, draw)[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with the options given and return the exit status."""
    return command_line(hint, "groups.hint", arguments)


if __name__ == "__main__":
    sys.exit(main())
