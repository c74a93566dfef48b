"""Targets that are numbers and may be wrong: how far they are from what models that never saw them predict."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steelyard import reweight
from steelyard._support._modules import evaluating
from steelyard.bilevel.batch import Batch
from steelyard.experiments.priors._term import CHUNK
from steelyard.experiments.priors.computed import ComputedPrior, ComputedScore, digest
from steelyard.experiments.priors.out_of_fold import FOLD, OutOfFoldSettings, dealt
from steelyard.experiments.priors.suspicion import SUSPICION, ranks
from steelyard.experiments.training.problem import Problem, silent
from steelyard.experiments.training.seeds import derived, generator
from steelyard.experiments.training.trainer import train

__all__ = ["Residuals", "TargetNoise", "far_off", "filed_residuals", "out_of_fold_residuals", "target_noise"]

_STEPS = 200  # of the expectation maximisation; it has two parameters
_NORMAL = 1.4826  # the deviation of a normal variable, of its median absolute deviation
_FIRST = 0.1  # share of wrong targets where the fit begins
_MOST = 0.5  # of it: where the range of the targets tells them as well as any prediction, the share is not known
_SMALLEST = 1e-6  # deviation of right targets, of the targets' own


@dataclass(frozen=True, eq=False)
class Residuals:
    """What models that were not trained on a sample say of its target.

    Attributes:
        predicted: ``(n,)`` the mean over repeats, standardised as the targets are.
        residual: ``(n,)`` the target less the prediction.
        others: ``(m,)`` predictions of the samples that no model was trained on, if there are some.
    """

    predicted: Float[Tensor, " n"]
    residual: Float[Tensor, " n"]
    others: Float[Tensor, " m"] | None = None


@dataclass(frozen=True, eq=False)
class TargetNoise:
    """How far right targets are from the predictions, and what that says of each target.

    Attributes:
        scale: the standard deviation of a right target about the prediction.
        right: ``(n,)`` the probability that the target is right.
    """

    scale: float
    right: Float[Tensor, " n"]

    @property
    def share(self) -> float:
        """The share of targets that seem wrong."""
        return float((1 - self.right.double()).mean())


def out_of_fold_residuals(
    problem: Problem,
    settings: OutOfFoldSettings,
    trained: Callable[[int], None] = lambda models: None,
    others: Batch | None = None,
) -> Residuals:
    """Predict every training target of `problem` by models that were trained on the other samples.

    Each model is a stage of the problem's journal.

    Args:
        problem: the samples, the model (its head "value"), the seed.
        settings: see `OutOfFoldSettings`; targets are read at the end of a training alone.
        trained: called after each model, with the number of those trained.
        others: more samples, which no model is trained on and every one predicts.

    Raises:
        ValueError: fewer samples than folds.
        FloatingPointError: see `Learner.step`.
    """
    data = problem.splits.train
    if len(data) < settings.folds:
        raise ValueError(f"there are {len(data)} training samples, and each of {settings.folds} folds needs one")
    found = torch.zeros(settings.repeats, len(data))
    beside: list[Tensor] = []
    one_kind = torch.zeros(len(data), dtype=torch.int64)
    for repeat in range(settings.repeats):
        fold = dealt(one_kind, settings.folds, generator(problem.seed, FOLD, repeat))
        for number in range(settings.folds):
            own = replace(problem, seed=derived(problem.seed, FOLD, repeat, number))
            training = replace(settings.training, evaluate_every=settings.training.steps)
            model = train(own, training, silent, data=data.take(torch.nonzero(fold != number).flatten()))
            held = torch.nonzero(fold == number).flatten()
            found[repeat, held] = _predicted(problem, model, data.take(held))
            if others is not None:
                beside.append(_predicted(problem, model, others))
            trained(repeat * settings.folds + number + 1)
    predicted = found.double().mean(0).float()
    mean = torch.stack(beside).double().mean(0).float() if beside else None
    return Residuals(predicted, data.targets.cpu() - predicted, mean)


def _predicted(problem: Problem, model: nn.Module, data: Batch) -> Float[Tensor, " n"]:
    with torch.no_grad(), evaluating(model):
        return torch.cat([problem.head.predict(model(part.inputs)).cpu() for part in data.chunks(CHUNK)])


def target_noise(
    residual: Float[Tensor, " n"], targets: Float[Tensor, " n"], clean: Float[Tensor, " m"] | None = None
) -> TargetNoise:
    """Estimate how probable it is that each target is right.

    A mixture is fitted by expectation maximisation: the residuals of right targets are normal about 0, and a wrong
    target is as likely to be anywhere between the smallest and the largest one. No more than half are taken to be
    wrong. Where the residuals of right targets
    have long tails, or differ in size from place to place, more seem wrong than are.

    Args:
        residual: ``(n,)`` of models that were not trained on the sample.
        targets: ``(n,)`` as given, on the same scale; their range is all that is used.
        clean: ``(m,)`` residuals of samples whose targets are right, by such models. The deviation of right targets is
            then theirs, about 0, and is not fitted.

    References:
        A uniform component for what fits no other: Banfield and Raftery, Model-based Gaussian and non-Gaussian
        clustering, Biometrics 49 (1993), section 3; expectation maximisation: Dempster et al. 1977.

    Example:
        >>> found = target_noise(torch.tensor([0.1, -0.1, 0.2, -0.2, 3.0]), torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]))
        >>> [round(one, 2) for one in found.right.tolist()]
        [0.96, 0.96, 0.93, 0.93, 0.0]
    """
    off, spread = residual.double(), float((targets.double().max() - targets.double().min()).clamp(min=1e-12))
    known = off if clean is None else clean.double()
    scale = _NORMAL * float(known.abs().median()) if clean is None else float(known.square().mean().sqrt())
    smallest = _SMALLEST * max(spread, float(off.abs().max()))
    scale, wrong = max(scale, smallest), _FIRST
    right = torch.ones_like(off)
    for _ in range(_STEPS):
        fits = (1 - wrong) * torch.exp(-0.5 * (off / scale).square()) / (scale * math.sqrt(2 * math.pi))
        right = fits / (fits + wrong / spread).clamp(min=1e-300)
        wrong = min(_MOST, float((1 - right).mean()))
        if clean is None:
            scale = max(float(((right * off.square()).sum() / right.sum().clamp(min=1e-12)).sqrt()), smallest)
    return TargetNoise(scale, right.float())


def far_off(found: Residuals) -> Float[Tensor, " n"]:
    """Return how suspect each target is, ``(n,)`` in (0, 1): the rank of the size of its residual; high = suspect."""
    return ranks(found.residual.abs()).float()


def filed_residuals(
    problem: Problem, settings: OutOfFoldSettings, found: Residuals, noise: TargetNoise
) -> ComputedPrior:
    """Return the residuals as a run files them: the prior is the probability that a target is right.

    The last score, `SUSPICION`, is the order of the suspects; `budget` is the number of targets that seem right.
    """
    budget = float(noise.right.double().sum())
    scores = {"out-of-fold residual": found.residual.abs(), SUSPICION: far_off(found)}
    parts = tuple(
        ComputedScore(name, 1.0, "low", values, reweight.keep_probabilities(-values, budget))
        for name, values in scores.items()
    )
    index = problem.splits.train.index.cpu()
    return ComputedPrior(noise.right.double(), index, parts, digest(problem, settings, budget))
