"""Scores of training samples, computed by short runs before MAPLE begins, and the prior that a recipe makes of them.

In a recipe::

    [method.prior]
    anchor = 0.01
    within = "errors"
    [[method.prior.scores]]
    name = "lhd"
    [[method.prior.scores]]
    name = "rank_disagreement"
    weight = 0.5

Each score is a page of settings with ``scores(problem) -> (n,)``. Only training samples are looked at.
"""

from __future__ import annotations

from steelyard.experiments.priors.aum import AUM
from steelyard.experiments.priors.computed import PRIOR, ComputedPrior, ComputedScore
from steelyard.experiments.priors.el2n import EL2N
from steelyard.experiments.priors.ensemble import EnsembleTerm, train_ensemble
from steelyard.experiments.priors.forgetting import Forgetting
from steelyard.experiments.priors.knn_shapley import KNNShapley
from steelyard.experiments.priors.label_quality import NormalisedMargin, SelfConfidence
from steelyard.experiments.priors.lhd import LHD
from steelyard.experiments.priors.rank_disagreement import RankDisagreement
from steelyard.experiments.priors.score_file import ScoreFile
from steelyard.experiments.priors.self_influence import SelfInfluence
from steelyard.experiments.priors.settings import PriorSettings, Score

__all__ = [
    "AUM",
    "EL2N",
    "LHD",
    "PRIOR",
    "ComputedPrior",
    "ComputedScore",
    "EnsembleTerm",
    "Forgetting",
    "KNNShapley",
    "NormalisedMargin",
    "PriorSettings",
    "RankDisagreement",
    "Score",
    "ScoreFile",
    "SelfConfidence",
    "SelfInfluence",
    "train_ensemble",
]
