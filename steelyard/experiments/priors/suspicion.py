"""One order of suspects from what held-out models say of every label."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard import reweight
from steelyard.experiments.priors.computed import ComputedPrior, ComputedScore, digest
from steelyard.experiments.priors.label_noise import LabelNoise
from steelyard.experiments.priors.out_of_fold import OutOfFold, OutOfFoldSettings
from steelyard.experiments.training.problem import Problem

__all__ = ["SUSPICION", "filed_scores", "ranks", "suspicion"]

_WITHIN = 0.25  # what the rank within the class counts for, beside that among all samples
SUSPICION = "suspicion"  # the name of the combined score in a filed prior


def suspicion(scores: OutOfFold, labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return how suspect each label is, ``(n,)`` in [0, 1]; high = suspect.

    By the margin of the given label, averaged over the training (AUM), out of fold: four fifths its rank among all
    samples, one fifth its rank among those with the same label, for labels of one class may be wrong more often. What
    is combined was chosen on training rows of several data sets whose labels were made wrong in three ways
    (benchmarks/suspects.py). The probability of the label, movement (LHD) and disagreement did not help.

    Args:
        scores: see `out_of_fold`.
        labels: ``(n,)`` class ids, as given.
    """
    overall, within = ranks(scores.aum), torch.zeros(len(labels), dtype=torch.float64)
    for one in labels.unique():
        member = labels == one
        within[member] = ranks(scores.aum[member])
    return (1 - (overall + _WITHIN * within) / (1 + _WITHIN)).float()


def filed_scores(problem: Problem, settings: OutOfFoldSettings, scores: OutOfFold, noise: LabelNoise) -> ComputedPrior:
    """Return the scores as a run files them: the prior is the probability that a label is right.

    The last score, `SUSPICION`, is the order of the suspects; `budget` is the number of labels that seem right.
    """
    labels = problem.splits.train.targets.cpu()
    found = {
        "out-of-fold confidence": (scores.confidence, "high"),
        "out-of-fold AUM": (scores.aum, "high"),
        "out-of-fold LHD": (scores.lhd, "low"),
        "out-of-fold disagreement": (scores.disagreement, "high"),
        SUSPICION: (suspicion(scores, labels), "low"),
    }
    budget = float(noise.right.double().sum())
    parts = tuple(
        ComputedScore(
            name, 1.0, keep, values, reweight.keep_probabilities(values if keep == "high" else -values, budget)
        )
        for name, (values, keep) in found.items()
    )
    return ComputedPrior(
        noise.right.double(), problem.splits.train.index.cpu(), parts, digest(problem, settings, budget)
    )


def ranks(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return ranks in (0, 1), equal values sharing theirs."""
    ordered = values.sort().values
    below = torch.searchsorted(ordered, values.contiguous())
    up_to = torch.searchsorted(ordered, values.contiguous(), right=True)
    return (below + up_to).double() / (2 * len(values))
