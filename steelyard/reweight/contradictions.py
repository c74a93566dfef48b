"""Are the samples that nets contradict the easy ones? A sign, in training data alone, of labels chosen to mislead.

Honest errors do not choose their samples, and nets contradict hard samples more often than easy ones. Who wants to harm
makes the labels of the easiest samples wrong; then it is easy samples that are contradicted.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.bilevel import Batch, Streamed

__all__ = ["easy_contradictions"]

_WIDEST = 4096  # features: the linear teacher solves systems of this size
_RIDGE = 0.1  # of the mean of the features' squares


def easy_contradictions(
    train: Batch,
    weights: Float[Tensor, " n"] | Numbers,
    contradicted: Bool[Tensor, " n"],
    *,
    folds: int = 4,
    repeats: int = 3,
    seed: int = 0,
) -> float:
    """Return how often a contradicted sample is easier than one that is not: above 1/2 is a hint at chosen labels.

    How easy a sample is says a linear teacher, ridge regression on the flattened inputs, trained under the weights on
    the samples of the other folds: the distance between its two greatest outputs. The figure is the area under the
    curve of that distance, as a score of `contradicted`, under the weights. It needs a task that a linear teacher
    knows something of; where it knows nothing, or all samples are equally hard, the figure is near 1/2 by chance.

    It is a hint and no test: with 20 % wrong labels on top of what the data have it was right on 8, 9 and 10 of 10
    fresh cases of three data sets with two classes. Our own figure; no paper has it.

    Args:
        train: ``n`` samples whose targets are class ids.
        weights: ``(n,)`` >= 0, as of `balance`.
        contradicted: ``(n,)`` whose given label has a probability below 1/2 by nets that did not train on it.
        folds, repeats, seed: of the teacher's splits; its outputs are averaged over the repeats.

    Returns:
        A number in [0, 1]; NaN where there is none: inputs that are no tensor in memory or wider than 4,096 features,
        one class, or no weight on one of the two sides.

    Raises:
        ValueError: lengths that differ, negative or infinite weights, targets that are no class ids.
    """
    _check.instance("train", train, Batch, "a Batch, as Batch.of(inputs, targets) makes it")
    _check.integer("folds", folds, low=2)
    _check.integer("repeats", repeats, low=1)
    given = _check.finite("weights", _check.floats("weights", weights, ("n",)))
    given = _check.entries_in("weights", given, 0, math.inf).double().cpu()
    against = _check.tensor("contradicted", contradicted, ("n",)).bool().cpu()
    _check.same_length(train=train.index, weights=given, contradicted=against)
    targets = _check.integers("train.targets", train.targets).cpu()
    sides = [float(given[side].sum()) for side in (against, ~against)]
    if isinstance(train, Streamed) or not isinstance(train.inputs, Tensor) or min(sides) == 0:
        return math.nan
    features = train.inputs.detach().flatten(1).double().cpu()
    if features.shape[1] > _WIDEST or len(features) < folds or len(targets.unique()) < 2:
        return math.nan
    outputs = _outputs(features, targets, given, folds, repeats, seed)
    best = outputs.topk(2, dim=1).values
    return _area(best[:, 0] - best[:, 1], against, given)


def _outputs(
    features: Tensor, targets: Tensor, weights: Tensor, folds: int, repeats: int, seed: int
) -> Float[Tensor, "n classes"]:
    """Return the teachers' outputs for the samples that they were not trained on, a mean over the repeats."""
    inputs = torch.cat([features, torch.ones(len(features), 1, dtype=torch.float64)], 1)
    wanted = torch.nn.functional.one_hot(targets.unique(return_inverse=True)[1]).double()
    found = torch.zeros_like(wanted)
    for repeat in range(repeats):
        split = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed + repeat))
        parts = [split[fold::folds] for fold in range(folds)]
        moments = [_moments(inputs[rows], wanted[rows], weights[rows]) for rows in parts]
        for fold, rows in enumerate(parts):
            others = [one for other, one in enumerate(moments) if other != fold]
            square, product = (torch.stack(one).sum(0) for one in zip(*others, strict=True))
            square += (_RIDGE * square.diagonal().mean()).clamp_min(1e-300) * torch.eye(len(square), dtype=square.dtype)
            found[rows] += inputs[rows] @ torch.linalg.solve(square, product) / repeats
    return found


def _moments(inputs: Tensor, wanted: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    weighted = (inputs * weights[:, None]).T
    return weighted @ inputs, weighted @ wanted


def _area(score: Tensor, positive: Tensor, weights: Tensor) -> float:
    """Return the weighted probability that a positive has the greater score, ties counted half."""
    values, place = score.unique(return_inverse=True)
    above, below = (
        torch.zeros(len(values), dtype=torch.float64).index_add_(0, place, weights * side)
        for side in (positive, ~positive)
    )
    passed = below.cumsum(0) - below / 2
    return float((above * passed).sum() / (above.sum() * below.sum()))
