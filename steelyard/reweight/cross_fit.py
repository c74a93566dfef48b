"""The cross-fitted outer risk: no sample is judged by a model that was trained on it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from steelyard._support import _check
from steelyard.bilevel import Batch, Streamed
from steelyard.distributed import ALONE, Ranks
from steelyard.reweight.inner import InnerRun
from steelyard.reweight.outer_risk import Drawn, Estimator, OuterRisk, hypergradient
from steelyard.reweight.together import Together, TogetherName, Trained

__all__ = ["CrossFit"]


class CrossFit:
    """Hypergradient of a risk of out-of-fold outputs.

    Evaluated on the training samples themselves, an outer risk sees the kept ones through a model that has learned
    them by heart: the rare group of the kept set looks better than it is, and the penalty reaches 0 too early. Here
    the samples are split at random, model q is trained on the kept samples outside of fold q and gives the outputs
    for fold q, and the risk is taken of all outputs together. Each inner weight gets the sum of its derivatives
    through the models that were trained with it. Cost: `folds` inner runs, and as many sweeps over
    the samples outside of a fold, of which a copy is held meanwhile (of a `Streamed`, and on several ranks: over all).

    This is not in the paper; sample splitting as in Chernozhukov et al., "Double/debiased machine learning", 2018.

    Args:
        inner: the inner run; every fold gets its own copy. It must restart: a warm start would carry what was learned
            of a fold into the next draw, where that fold may be the one judged.
        folds: >= 2.
        together: whether the folds' models are trained as one: "auto", where that is the same and they are small (see
            `Together`), True or False.

    Attributes:
        together: what trains them; its ``apart`` says why the last call did so one after the other.

    Raises:
        ValueError: fewer than two folds, or a warm-started inner run.
    """

    def __init__(self, inner: InnerRun, folds: int, together: TogetherName = "auto") -> None:
        _check.integer("folds", folds, low=2)
        if not inner.restart:
            raise ValueError("folds > 1 needs an InnerRun with restart=True: a warm start has seen every fold")
        self.folds = folds
        self.together = Together([inner.fresh() for _ in range(folds)], together)

    def __call__(
        self,
        estimator: Estimator,
        outer: OuterRisk,
        train: Batch,
        weight: Float[Tensor, " n"],
        generator: torch.Generator,
    ) -> Drawn:
        """Return d risk / d weight ``(n,)`` and the risk.

        Args:
            estimator: of the hypergradient.
            outer: the risk, on the samples of `train`.
            train: ``n`` samples.
            weight: ``(n,)`` inner weights.
            generator: of the split.
        """
        folds = [self.split(weight, generator, outer.ranks)]
        own = self.tasks([weight], folds)
        return next(self.each(estimator, outer, train, [weight], folds, self.together([train] * len(own), own)))

    def tasks(self, weights: Sequence[Float[Tensor, " n"]], folds: Sequence[Int[Tensor, " n"]]) -> list[Tensor]:
        """Return the weights of the inner runs of each of several `weights`, 0 in the fold that a run leaves out."""
        several = zip(weights, folds, strict=True)
        return [torch.where(fold == number, 0, weight) for weight, fold in several for number in range(self.folds)]

    def each(
        self,
        estimator: Estimator,
        outer: OuterRisk,
        train: Batch,
        weights: Sequence[Float[Tensor, " n"]],
        folds: Sequence[Int[Tensor, " n"]],
        trained: Iterator[Trained],
    ) -> Iterator[Drawn]:
        """Yield what a call returns for each of several `weights`, with the folds that `split` gave.

        `trained` has the models and records of their `tasks`, in that order.
        """
        for weight, fold in zip(weights, folds, strict=True):
            yield self._drawn(estimator, outer, train, weight, fold, islice(trained, self.folds))

    def _drawn(
        self,
        estimator: Estimator,
        outer: OuterRisk,
        train: Batch,
        weight: Tensor,
        fold: Tensor,
        trained: Iterator[Trained],
    ) -> Drawn:
        runs = []
        for number, (model, trajectory) in enumerate(trained):
            rows = (fold == number).nonzero().flatten()
            with torch.no_grad():
                own = outer.outputs(model.eval(), train, rows)
            runs.append((rows, own, model, trajectory))
        pooled = runs[0][1].new_empty(len(train), *runs[0][1].shape[1:])
        for rows, own, _, _ in runs:
            pooled[rows] = own
        total, value = torch.zeros_like(weight), math.nan
        for rows, _, model, trajectory in runs:
            # This model is never trained on its own fold, whose weights have no derivative through it.
            others = _others(train, rows, outer.ranks)
            samples = train if others is None else train.take(others)
            gradient, value = hypergradient(estimator, model, trajectory, _Through(outer, pooled, rows), samples)
            if others is None:
                total += gradient.index_fill(0, rows, 0).to(total.dtype)
            else:
                total.index_add_(0, others, gradient.to(total.dtype))
        return Drawn(total, value)

    def split(self, weight: Float[Tensor, " n"], generator: torch.Generator, ranks: Ranks = ALONE) -> Int[Tensor, " n"]:
        """Return the fold ``(n,)`` of every sample, of equal size up to one; not all that is kept in one fold."""
        start, total = ranks.place(len(weight))
        while True:
            order = torch.randperm(total, generator=generator, device=generator.device)[start : start + len(weight)]
            fold = (order % self.folds).to(weight.device)
            kept = ranks.sum(torch.bincount(fold[weight > 0], minlength=self.folds))
            # Fewer than two kept samples cannot be split: the inner run then says so.
            if int(kept.sum()) < 2 or int(kept.count_nonzero()) > 1:
                return fold


def _others(train: Batch, rows: Tensor, ranks: Ranks) -> Tensor | None:
    """Return the positions that are not `rows`; None where taking these samples apart does not pay.

    (What is on disk is read in chunks, in its order; of several ranks one may be left with nothing.)
    """
    if isinstance(train, Streamed) or ranks.size > 1:
        return None
    return torch.ones(len(train), dtype=torch.bool, device=rows.device).index_fill_(0, rows, False).nonzero().flatten()


class _Through:
    """The risk of the pooled outputs as a function of the model of one fold; the others are held."""

    def __init__(self, outer: OuterRisk, pooled: Tensor, rows: Tensor) -> None:
        self._outer, self._pooled, self._rows = outer, pooled, rows

    def __call__(self, model: nn.Module) -> Tensor:
        own = self._outer.outputs(model, self._outer.samples, self._rows)
        return self._outer.of(self._pooled.index_copy(0, self._rows, own))
