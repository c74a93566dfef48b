"""MAPLE: sample weights and keep-probabilities learned so that the model trained under them is invariant."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from steelyard import reweight
from steelyard._support import _check
from steelyard.bilevel import Batch, Streamed, Truncated, WeightedLoss
from steelyard.experiments.methods._ways import TogetherSetting, Ways
from steelyard.experiments.methods.evaluation_interval import OuterCost
from steelyard.experiments.methods.shuffled_hypergradient import ShuffledHypergradient
from steelyard.experiments.priors import PriorSettings
from steelyard.experiments.training import group_labels
from steelyard.experiments.training.precision import Bfloat16, takes_bfloat16
from steelyard.experiments.training.problem import Fitted, Latest, Observer, Problem
from steelyard.experiments.training.ranges import FIXED, SUBPOPBENCH, Fixed, Range, Within
from steelyard.experiments.training.trainer import OptimizerSettings
from steelyard.reweight.outer_risk import Estimator

__all__ = ["InnerSettings", "Maple", "OuterRisk"]

_PENALTIES = {"vrex": reweight.VREx, "irmv1": reweight.IRMv1, "group_worst": reweight.GroupWorst}
# By SGD on most recipes, whose steps are longer than Adam's.
_INNER = Within({"steps": Fixed("what the run may cost"), "optimizer.learning_rate": Range.log10(-3, 0)})
_EPS = 1e-12  # of Adam: hypergradients of single samples can be far below its default, 1e-8


@dataclass(frozen=True)
class InnerSettings:
    """The inner run: how the model is trained on the kept samples at each outer step.

    Attributes:
        steps: optimizer steps.
        batch_size: samples a step; 0 takes all that are kept.
        restart: start every inner run from the same initial parameters (the paper); false goes on from the last one.
        bfloat16: autocast to bfloat16; "auto": where that is faster, which is measured when a run begins and written
            into it.
        schedule: of the learning rate over an inner run: "constant", or "cosine" down to 2%.
        optimizer: the optimizer.
    """

    steps: int = 100
    batch_size: Annotated[int, Range.log2(6, 6.75, SUBPOPBENCH, whole=True, off=0)] = 0
    restart: bool = True
    bfloat16: Bfloat16 = False
    schedule: Literal["constant", "cosine"] = "constant"
    optimizer: OptimizerSettings = field(default_factory=lambda: OptimizerSettings("sgd", 0.1, 0.9))

    def __post_init__(self) -> None:
        _check.integer("steps", self.steps, low=1)
        _check.integer("batch_size", self.batch_size, low=0)


@dataclass(frozen=True)
class OuterRisk:
    """The outer risk: a penalty on differences between environments (or the worst group), and a share of the mean loss.

    Attributes:
        penalty: "vrex" or "irmv1" over environments, or "group_worst", the loss of the worst group.
        shape: "sqrt" (the default), "log" or "plain". The penalties are squares, whose gradients fade as they fall; the
            square root's gradient keeps its size (V-REx's, for two environments, is half the difference of their
            risks), the logarithm's grows without bound near zero. The worst group's loss is no square: take "plain".
        mean: coefficient of the mean loss, added.
    """

    penalty: Literal["vrex", "irmv1", "group_worst"] = "vrex"
    shape: Literal["sqrt", "log", "plain"] = "sqrt"
    mean: float = 0.0

    def build(self) -> reweight.Risk:
        """Return the risk."""
        risk: reweight.Risk = _PENALTIES[self.penalty]()
        if self.shape != "plain":
            risk = reweight.Sqrt(risk) if self.shape == "sqrt" else reweight.Log(risk)
        return risk + self.mean * reweight.MeanRisk() if self.mean else risk


@dataclass(frozen=True)
class Maple:
    """MAPLE (Zhou et al. 2022, Algorithm 1), by `steelyard.reweight.Maple`.

    Labels needed: class and environment (or group), in training. Each outer step trains the inner model on a draw of
    the kept samples; that inner model is what is evaluated, and the last one is the final model. (A cross-fitted step,
    which does without it, trains it where it is evaluated. So the update of the
    last outer step shows in the saved weights but in no model, unless `retrain` makes one.) A net with BatchNorm is
    differentiated with the statistics of chunks of the samples instead of the last batch's.

    Of inputs that stay on disk the inner run loads its batches, the outer risk and the hypergradient a chunk at a time;
    a chunk is as large as an inner batch, and that of the hypergradient drawn at random, so that the statistics which
    BatchNorm takes of it are like those of a batch. Beside a chunk only numbers are held, a few a sample.

    Attributes:
        budget: K, the number of training samples that are kept on average, or below 1 their share (as
            `reweight.budget_of` says); left out it is all of them, where only the weights are learned.
        steps: outer steps.
        learn: "both", "weights" or "probabilities".
        draws: masks (and inner runs) averaged at each outer step; the last draw's model is evaluated.
        outer_split: where the outer risk is taken. With "validation" the validation figures are no longer held out.
        probability_rate: Adam's step size on the keep-probabilities.
        weight_rate: Adam's step size on the weights.
        folds: 1 takes the outer risk of the inner model's own outputs; more cross-fits it (`reweight.CrossFit`).
        beta1: Adam's memory of the gradient.
        clip: largest norm of the gradient of the probabilities, and of that of the weights; 0 leaves them as they are.
        schedule: of both step sizes over the run: "cosine" down to 2%, or "constant".
        evaluate_every: outer steps between two evaluations; the last step is always evaluated. 0: as many as keep
            evaluation, and the inner runs made for it, at a tenth of the run or less, by count (`OuterCost`); the last
            step alone where not even that is so little.
        retrain: end with one more inner run, on all samples with the weights that they have on average, s_i w_i, which
            no draw of a mask disturbs; it is observed as step ``steps + 1`` and is the final model.
        together: whether the inner runs of an outer step, of its folds and draws, are trained as one pass over stacked
            parameters: "auto", where each is the same up to rounding and the nets are small (`reweight.Maple`), true or
            false. How they were trained is written into the run, as "inner runs".
        risk: the outer risk.
        inner: the inner run.
        prior: scores of the samples, computed once before the first step, where s and w begin or what anchors s.
    """

    regression: ClassVar[bool] = True
    budget: Annotated[int | float | None, Range.linear(0.2, 0.9)] = None
    name: Literal["maple"] = "maple"
    steps: Annotated[int, Fixed("what the run may cost")] = 30
    learn: Literal["both", "weights", "probabilities"] = "both"
    draws: Annotated[int, FIXED] = 1
    folds: Annotated[int, FIXED] = 1
    outer_split: Literal["train", "validation"] = "train"
    probability_rate: Annotated[float, Range.log10(-2, 0)] = 0.1
    weight_rate: Annotated[float, Range.log10(-2.5, -0.5)] = 0.05
    beta1: Annotated[float, FIXED] = 0.5
    clip: Annotated[float, FIXED] = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    evaluate_every: Annotated[int, FIXED] = 0
    retrain: bool = False
    together: TogetherSetting = "auto"
    risk: Annotated[OuterRisk, FIXED] = field(default_factory=OuterRisk)
    inner: Annotated[InnerSettings, _INNER] = field(default_factory=InnerSettings)
    prior: Annotated[PriorSettings, Fixed("scores are chosen, not drawn")] = field(default_factory=PriorSettings)

    def __post_init__(self) -> None:
        if self.budget is not None:
            _check.in_range("budget", self.budget, low=0, open_low=True)
        elif self.learn != "weights":
            raise ValueError(
                "budget is missing: give the number of samples to keep, or below 1 their share (only learn = 'weights' "
                "can do without)"
            )
        _check.integer("steps", self.steps, low=1)
        for name in ("probability_rate", "weight_rate"):
            _check.in_range(name, getattr(self, name), low=0.0, open_low=True)
        _check.in_range("clip", self.clip, low=0.0)
        _check.in_range("beta1", self.beta1, low=0.0, high=1.0, open_high=True)
        _check.integer("draws", self.draws, low=1)
        _check.integer("evaluate_every", self.evaluate_every, low=0)
        if _check.integer("folds", self.folds, low=1) > 1 and self.outer_split != "train":
            raise ValueError("folds above 1 cross-fit the training samples: take outer_split = 'train'")
        if self.prior.anchor and self.learn == "weights":
            raise ValueError("prior.anchor draws the probabilities to the prior, but learn = 'weights' holds them")

    @property
    def last_step(self) -> int:
        """The number of the last step that is observed."""
        return self.steps + self.retrain

    @property
    def needs_environments(self) -> bool:
        """Whether it reads the environments of training samples."""
        return self.risk.penalty != "group_worst"

    @property
    def needs_training_groups(self) -> bool:
        """Whether it reads the groups of training samples."""
        return self.risk.penalty == "group_worst" and self.outer_split == "train"

    @property
    def needs_validation_groups(self) -> bool:
        """Whether it reads the groups of validation samples."""
        return self.risk.penalty == "group_worst" and self.outer_split == "validation"

    def evaluation_interval(self, problem: Problem) -> int:
        """Return how many outer steps lie between two evaluations."""
        if self.evaluate_every:
            return self.evaluate_every
        splits, ranks = problem.splits, problem.ranks
        train, validation, test = (ranks.count(len(one)) for one in (splits.train, splits.validation, splits.test))
        return OuterCost(
            samples=train,
            kept=reweight.budget_of(self.budget, train) if self.budget is not None else train,
            judged=train if self.outer_split == "train" else validation,
            evaluated=train + validation + test,
            inner_steps=self.inner.steps,
            batch_size=self.inner.batch_size,
            folds=self.folds,
            draws=self.draws,
        ).interval(self.steps)

    def inner_run(self, problem: Problem) -> reweight.InnerRun:
        """Return the inner run."""
        return reweight.InnerRun(
            problem.model,
            self.inner.optimizer.build,
            WeightedLoss(problem.loss, ranks=problem.ranks),
            self.inner.steps,
            batch_size=self.inner.batch_size or None,
            restart=self.inner.restart,
            autocast=torch.bfloat16 if takes_bfloat16(self.inner.bfloat16, problem.splits.train.index.device) else None,
            seed=problem.seed,
            schedule=reweight.CosineDecay() if self.inner.schedule == "cosine" else None,
        )

    def outer_run(self, problem: Problem, inner: reweight.InnerRun) -> reweight.Maple:
        """Return what learns weights and probabilities."""
        return reweight.Maple(
            inner,
            self.risk.build(),
            budget=self.budget,
            steps=self.steps,
            learn=self.learn,
            draws=self.draws,
            folds=self.folds,
            probability_optimizer=self._adam(self.probability_rate),
            weight_optimizer=self._adam(self.weight_rate),
            clip=self.clip or None,
            schedule=reweight.CosineDecay() if self.schedule == "cosine" else _constant,
            estimator=self._estimator(problem.splits.train, problem.seed),
            prior=self.prior.build(problem, reweight.budget_of(self.budget, len(problem.splits.train))),
            seed=problem.seed,
            together=self.together,
        )

    def fit(self, problem: Problem, observe: Observer) -> Fitted:
        """Learn weights and probabilities, and return them with the inner model of the last outer step."""
        (fitted,) = self.fit_together([problem], [observe])
        return fitted

    def fit_together(self, problems: Sequence[Problem], observers: Sequence[Observer]) -> list[Fitted]:
        """Return what `fit` does for each of several problems (seeds); of small nets in less time.

        (See `reweight.fit_together`.)

        Args:
            problems: each with a journal of its own.
            observers: of each.
        """
        ready = [self._prepared(problem, observe) for problem, observe in zip(problems, observers, strict=True)]
        learned = reweight.fit_together(
            [one.maple for one in ready],
            [one.train for one in ready],
            [one.held_out for one in ready],
            [[one.watch] for one in ready],
            journals=[problem.journal for problem in problems],
            carry=[{"model": one.latest, "ways": one.ways} for one in ready],
        )
        several = zip(ready, problems, observers, learned, strict=True)
        return [self._finished(one, problem, observe, found) for one, problem, observe, found in several]

    def _prepared(self, problem: Problem, observe: Observer) -> _Prepared:
        maple = self.outer_run(problem, self.inner_run(problem))
        latest, ways, every = Latest(problem.model), Ways(), self.evaluation_interval(problem)

        def watch(step: reweight.OuterStep) -> None:
            ways.note(maple.apart)
            if (step.step + 1) % every and step.step + 1 < self.steps:
                return
            numbers = {key: float(value) for key, value in step.row.items() if isinstance(value, (int, float))}
            observe(step.step + 1, step.model, numbers)
            latest.model = step.model

        train, validation = problem.splits.train, problem.splits.validation
        if self.risk.penalty == "group_worst":
            validation = group_labels.with_groups(validation)
            train = group_labels.with_groups(train) if self.needs_training_groups else train
        train, validation = self._in_chunks(train), self._in_chunks(validation)
        return _Prepared(maple, train, validation if self.outer_split == "validation" else None, watch, latest, ways)

    def _finished(
        self, ready: _Prepared, problem: Problem, observe: Observer, reweighting: reweight.Reweighting
    ) -> Fitted:
        latest, train = ready.latest, ready.train
        assert latest.model is not None  # there is at least one step
        if self.retrain:
            start, _ = problem.ranks.place(len(train))
            latest.model, _ = ready.maple.inner(train, reweighting.expected_weights[start : start + len(train)])
            observe(self.last_step, latest.model, {})
        return Fitted(latest.model, reweighting, facts={"inner runs": ready.ways.told()})

    def _in_chunks(self, data: Batch) -> Batch:
        return replace(data, chunk=self.inner.batch_size) if isinstance(data, Streamed) else data

    def _estimator(self, data: Batch, seed: int) -> Estimator:
        if not isinstance(data, Streamed):
            return Truncated(coupled="chunk")
        # Such inputs come in chunks of an inner batch, which the machine holds; to cut these smaller, by a memory that
        # is less, would have BatchNorm normalise an image by itself.
        return ShuffledHypergradient(Truncated(memory=sys.maxsize, coupled="chunk"), seed)

    def _adam(self, rate: float) -> Callable[[Iterable[Tensor]], torch.optim.Optimizer]:
        return partial(torch.optim.Adam, lr=rate, betas=(self.beta1, 0.999), eps=_EPS)


class _Prepared(NamedTuple):
    """A run before its first step: what learns, on which samples, what looks on, the model to return, what is noted."""

    maple: reweight.Maple
    train: Batch
    held_out: Batch | None
    watch: Callable[[reweight.OuterStep], None]
    latest: Latest
    ways: Ways


def _constant(progress: float) -> float:
    return 1.0
