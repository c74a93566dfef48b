"""The prior of a recipe: which scores, how they are pooled, and what the outer run does with them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from steelyard import reweight, selectors
from steelyard._support import _check
from steelyard.checkpoint import Journal
from steelyard.experiments.priors.aum import AUM
from steelyard.experiments.priors.computed import PRIOR, ComputedPrior, ComputedScore, digest
from steelyard.experiments.priors.el2n import EL2N
from steelyard.experiments.priors.ensemble import EnsembleTerm, train_ensemble
from steelyard.experiments.priors.forgetting import Forgetting
from steelyard.experiments.priors.knn_shapley import KNNShapley
from steelyard.experiments.priors.label_quality import NormalisedMargin, SelfConfidence
from steelyard.experiments.priors.lhd import LHD
from steelyard.experiments.priors.rank_disagreement import RankDisagreement
from steelyard.experiments.priors.score_file import ScoreFile
from steelyard.experiments.priors.self_influence import SelfInfluence
from steelyard.experiments.training.misclassified import misclassified
from steelyard.experiments.training.problem import Problem, silent
from steelyard.experiments.training.trainer import OptimizerSettings, Training, train

__all__ = ["PriorSettings", "Score"]

Score: TypeAlias = (
    LHD
    | RankDisagreement
    | EL2N
    | AUM
    | Forgetting
    | SelfConfidence
    | NormalisedMargin
    | SelfInfluence
    | KNNShapley
    | ScoreFile
)


def _identification() -> Training:
    return Training(steps=30, optimizer=OptimizerSettings("adam", 1e-2))


@dataclass(frozen=True)
class PriorSettings:
    """The prior of a recipe: scores, pooled, and what they are used for.

    Attributes:
        scores: which scores, with their weights; none: no prior.
        temperature: of `reweight.keep_probabilities`, for every score.
        within: what a sample is ranked among. "all": the training samples. "errors": those that a short ordinary run
            gets wrong among themselves, and those that it gets right among themselves, each with its share of the
            budget. Where a shortcut is what such a run learns first, wrong labels and samples that contradict the
            shortcut look alike to every loss; within the errors the shortcut is no help to either, and the
            score tells them apart. The price: the prior then has no opinion on errors against the rest, which without a
            shortcut is most of what losses say about labels. "balanced_errors": the same, but the errors and the rest
            share the budget equally, as far as there are errors: the prior then favours what contradicts the shortcut.
        identification: the short run of "errors" (as JTT's).
        start: what begins at the prior: "probabilities", "weights", "both" or "none" (see `reweight.Prior`).
        anchor: coefficient of the KL anchor; 0: none.
        anchor_end: the share of the coefficient that is left at the end of the run (it falls along a cosine).
    """

    scores: tuple[Score, ...] = ()
    temperature: float = 0.2
    within: Literal["all", "errors", "balanced_errors"] = "all"
    identification: Training = field(default_factory=_identification)
    start: Literal["probabilities", "weights", "both", "none"] = "probabilities"
    anchor: float = 0.0
    anchor_end: float = 0.0

    def __post_init__(self) -> None:
        _check.in_range("temperature", self.temperature, low=0.0, open_low=True)
        _check.in_range("anchor", self.anchor, low=0.0)
        _check.in_range("anchor_end", self.anchor_end, low=0.0, high=1.0)
        if self.anchor and not self.scores:
            raise ValueError("anchor needs a prior to anchor to: name at least one of scores")

    def build(self, problem: Problem, budget: float | int) -> reweight.Prior | None:
        """Return the prior as the outer run takes it; None without scores."""
        if not self.scores:
            return None
        pooled = self.compute(problem, budget).probabilities
        return reweight.Prior(pooled, self.start, self.anchor, reweight.CosineDecay(self.anchor_end))

    def compute(self, problem: Problem, budget: float | int) -> ComputedPrior:
        """Compute the scores, once each, and pool them; terms on the same proxies train these once.

        With ``problem.directory`` the result is filed there as `PRIOR`; one that is there already is read instead.

        Raises:
            RunError: the file there is damaged, or of other data, settings, or another seed.
        """
        terms = [term for term in self.scores if term.weight]
        key = digest(problem, self, budget, b"".join(term.source() for term in terms))
        path = None if problem.directory is None else problem.directory / PRIOR
        if path is not None and path.exists():
            return ComputedPrior.load_matching(path, key, problem.splits.train.device)
        # Killed before the prior is filed, it begins again: its short runs are no stages of the method.
        problem = replace(problem, journal=Journal(stop=problem.journal.asked_to_stop))
        strata = self._strata(problem) if terms else None
        ensembles: dict[object, selectors.Ensemble] = {}
        scores = tuple(self._score(term, problem, budget, strata, ensembles) for term in terms)
        count = len(problem.splits.train)
        flat = [torch.full((count,), budget / count, dtype=torch.float64)]  # all of weight 0: no opinion
        weights = [one.weight for one in scores]
        pooled = reweight.pool([one.probabilities for one in scores] or flat, budget, weights=weights or None)
        found = ComputedPrior(pooled, problem.splits.train.index, scores, key)
        if path is not None:
            found.save(path)
        return found

    def _score(
        self,
        term: Score,
        problem: Problem,
        budget: float | int,
        strata: Tensor | None,
        ensembles: dict[object, selectors.Ensemble],
    ) -> ComputedScore:
        if isinstance(term, EnsembleTerm):
            key = (term.models, term.training)
            if key not in ensembles:
                ensembles[key] = train_ensemble(problem, term.models, term.training)
            scores = term.of(problem, ensembles[key])
        else:
            scores = term.scores(problem)
        signed = scores if term.keep == "high" else -scores
        balanced = self.within == "balanced_errors"
        probabilities = reweight.keep_probabilities(
            signed, budget, temperature=self.temperature, strata=strata, balanced=balanced
        )
        return ComputedScore(term.name, term.weight, term.keep, scores, probabilities, term.figures(scores))

    def _strata(self, problem: Problem) -> Tensor | None:
        if self.within == "all":
            return None
        return misclassified(problem, train(problem, self.identification, silent)).long()
