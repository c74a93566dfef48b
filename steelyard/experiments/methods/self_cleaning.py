"""Labels that may be wrong: models that never saw a sample judge its label, and training goes by what they say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from steelyard import reweight
from steelyard._support import _check
from steelyard.bilevel.batch import Batch
from steelyard.experiments.methods._base import TrainedMethod
from steelyard.experiments.priors import PRIOR, ComputedPrior
from steelyard.experiments.priors.label_noise import label_noise, label_noise_by_clean
from steelyard.experiments.priors.out_of_fold import OutOfFoldSettings, out_of_fold, plain_training
from steelyard.experiments.priors.residuals import filed_residuals, out_of_fold_residuals, target_noise
from steelyard.experiments.priors.suspicion import filed_scores, suspicion
from steelyard.experiments.training.problem import Fitted, Observer, Problem
from steelyard.experiments.training.ranges import FIXED, Fixed
from steelyard.experiments.training.trainer import Training, train

__all__ = ["SelfCleaning"]

_SCORING = Fixed("scores are chosen, not drawn")


@dataclass(frozen=True)
class SelfCleaning(TrainedMethod):
    """Judge every label out of fold, and train on the labels that are probably right.

    Without clean samples (`trusted` false): `label_noise` estimates how many labels are wrong; as many samples, the
    most suspect ones (`suspicion`), are left out, as in confident learning (Northcutt et al. 2021, "prune by noise
    rate").
    With clean samples in the validation split (`trusted`): `label_noise_by_clean` estimates from them how labels were
    confused; each sample weighs as much as its label is probably right (Liu and Tao 2016), and the clean samples are
    trained on, too. Then the validation figures are not held out.
    Of a regression, `target_noise` says how probable it is that each target is right, with clean samples by their
    residuals, and each sample weighs as much.
    Labels needed: class labels or numbers, right or wrong. Errors that are systematic in the features are not found.

    Attributes:
        trusted: whether the labels of the validation samples are right.
        clean_share: what the clean samples weigh together at least, of what all training samples would.
        scoring: how the samples are judged.
        training: of the model on the weighted samples; observed.
    """

    regression: ClassVar[bool] = True
    name: Literal["self_cleaning"] = "self_cleaning"
    trusted: bool = False
    clean_share: Annotated[float, FIXED] = 0.1
    scoring: Annotated[OutOfFoldSettings, Fixed("scores are chosen, not drawn")] = field(
        default_factory=OutOfFoldSettings
    )
    training: Training = field(default_factory=plain_training)

    def __post_init__(self) -> None:
        _check.in_range("clean_share", self.clean_share, low=0.0, high=1.0)

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Judge, train, and return the model; a sample's keep-probability is what it was trained with."""
        data, clean = problem.splits.train, problem.splits.validation
        kept, prior = (self._by_class if problem.splits.target_scale is None else self._by_number)(problem)
        if problem.directory is not None:
            prior.save(problem.directory / PRIOR)
        kept = kept.to(data.index.device)
        samples, weights = data, kept
        if self.trusted:
            each = max(1.0, self.clean_share * len(data) / len(clean))
            samples = Batch.of(torch.cat([data.inputs, clean.inputs]), torch.cat([data.targets, clean.targets]))
            weights = torch.cat([kept, torch.full((len(clean),), each, device=kept.device)])
        numbered = Batch.of(samples.inputs, samples.targets)  # a sample's id is its place in `weights`
        model = train(problem, self.training, observe, rule=_Fixed(weights), data=numbered)
        return Fitted(model, reweight.Reweighting(torch.ones_like(kept), kept, [], data.index))

    def _by_class(self, problem: Problem) -> tuple[Float[Tensor, " n"], ComputedPrior]:
        """Return what each training sample weighs, and what is filed."""
        labels, clean = problem.splits.train.targets.cpu(), problem.splits.validation
        scores = out_of_fold(problem, self.scoring, others=clean if self.trusted else None)
        if scores.others is not None:
            noise = label_noise_by_clean(scores.probabilities, labels, scores.others, clean.targets.cpu())
            kept = noise.right
        else:
            noise = label_noise(scores.probabilities, labels)
            first = suspicion(scores, labels).argsort(descending=True, stable=True)
            kept = torch.ones(len(labels))
            kept[first[: round(noise.share * len(labels))]] = 0
        return kept, filed_scores(problem, self.scoring, scores, noise)

    def _by_number(self, problem: Problem) -> tuple[Float[Tensor, " n"], ComputedPrior]:
        """Return the same of a regression."""
        clean = problem.splits.validation
        found = out_of_fold_residuals(problem, self.scoring, others=clean if self.trusted else None)
        trusted = None if found.others is None else clean.targets.cpu() - found.others
        noise = target_noise(found.residual, problem.splits.train.targets.cpu(), trusted)
        return noise.right, filed_residuals(problem, self.scoring, found, noise)


class _Fixed(reweight.Rule):
    """Weights that stay: that of the sample whose position is its id."""

    def __init__(self, weights: Float[Tensor, " n"]) -> None:
        self._weights = weights

    def __call__(self, losses: Float[Tensor, " b"], batch: Batch) -> Float[Tensor, " b"]:
        return self._weights[batch.index].to(losses)
