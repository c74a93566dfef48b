"""Scores of samples by nets that were not trained on them, but on all the others, each with its weight.

A net of an ordinary run has learned the shortcut, and calls every sample suspect that contradicts it. Under weights
that balance the found groups the shortcut is worth nothing, and what a net then finds improbable is a wrong label.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard._support._modules import class_logits, evaluating, inputs_of_last_linear
from steelyard.bilevel import Batch, Streamed
from steelyard.bilevel.stacked import Stacked
from steelyard.reweight.inner import InnerRun
from steelyard.reweight.together import Together, TogetherName

__all__ = ["CrossFitScores", "Scoring", "cross_fit_scores"]

_FIELDS = ("label_probability", "correct", "lhd", "aum", "el2n", "loss")
_READS = 10  # times in a run that the margins are read; at the first of them EL2N, early in training
_CHUNK = 8192  # samples a forward pass


@dataclass(frozen=True, eq=False)
class CrossFitScores:
    """What nets say of samples that they were not trained on; each score is a mean over the repeats.

    Attributes:
        label_probability: ``(n,)`` probability of the given label; low = a wrong label, or a hard sample.
        correct: ``(n,)`` share of the repeats whose prediction is the given label.
        lhd: ``(n,)`` ||lh||, LHD's state difference in its form for known labels, between the net and the moving
            average of its weights; NaN for a model without an `nn.Linear`, 0 for one without a hidden layer.
        aum: ``(n,)`` margin of the given label, averaged over the run; low = a wrong label.
        el2n: ``(n,)`` ||p - e_y|| after a tenth of the run; high = a wrong label, or a hard sample.
        rank_disagreement: ``(n,)`` of the repeats' losses; low = a wrong label in the bulk. NaN with one repeat.
        losses: ``(repeats, n)`` -log of the probability of the given label.
        apart: why the nets were trained one after the other; "" where they were trained as one.
    """

    label_probability: Float[Tensor, " n"]
    correct: Float[Tensor, " n"]
    lhd: Float[Tensor, " n"]
    aum: Float[Tensor, " n"]
    el2n: Float[Tensor, " n"]
    rank_disagreement: Float[Tensor, " n"]
    losses: Float[Tensor, "repeats n"]
    apart: str = ""


def cross_fit_scores(
    inner: InnerRun,
    train: Batch,
    weights: Float[Tensor, " n"] | Numbers,
    folds: int = 4,
    repeats: int = 2,
    *,
    decay: float = 0.9,
    seed: int = 0,
    together: TogetherName = "auto",
) -> CrossFitScores:
    """Score samples by nets trained on all samples of the other folds, weighted.

    The samples are split at random into folds; a net is trained from the start on those outside of a fold, with their
    weights (which may be 0), and reads the fold. Every repeat has another split and another seed of the inner run.
    (Where ``inner.model`` seeds its own parameters, repeats differ by split and batches alone.) Cost: folds x repeats
    inner runs.

    Args:
        inner: how a net is trained; copies of it are, it keeps its own state. Its model answers with a logit a class,
            or with one logit, the log-odds of class 1.
        train: ``n`` samples whose targets are class ids.
        weights: ``(n,)`` >= 0, as of `balance`.
        folds: >= 2.
        repeats: >= 1; rank disagreement needs 2.
        decay: of the moving average that LHD compares with.
        seed: of the splits.
        together: whether the nets are trained as one: "auto", where each is the same up to rounding and they are small
            (see `Together`), True or False.

    Raises:
        ValueError: fewer than 2 folds, targets that are no class ids, several ranks (which is not supported: score in
            one process), or a fold outside of which all weights are 0.

    References:
        Khosla et al., "Understanding and Improving Neural Active Learning on Heteroskedastic Distributions", 4.2 (LHD);
        Pleiss et al., "Identifying mislabeled data using the area under the margin ranking", 2020 (AUM); Paul et al.,
        "Deep learning on a data diet", 2021 (EL2N); cross-fitting: Chernozhukov et al., "Double/debiased machine
        learning", 2018. The rank disagreement is ours, see `steelyard.selectors.rank_disagreement`.

    Example:
        See docs/guides/groups.md; ``cross_fit_scores(inner, train, balance(ones, cells)).label_probability``.
    """
    scoring = Scoring(inner, train, folds, repeats, decay=decay, seed=seed, together=together)
    given = _check.finite("weights", _check.floats("weights", weights, ("n",)))
    _check.same_length(train=train.index, weights=given)
    number = 0
    while number < scoring.nets:
        number += scoring.train_nets(number, given)
    return scoring.scores()


class Scoring:
    """`cross_fit_scores`, a net or all nets at a time: a stage of a journal carries what was read so far.

    Args:
        inner, train, folds, repeats, decay, seed, together: see `cross_fit_scores`.
    """

    def __init__(
        self,
        inner: InnerRun,
        train: Batch,
        folds: int,
        repeats: int,
        *,
        decay: float = 0.9,
        seed: int = 0,
        together: TogetherName = "auto",
    ) -> None:
        _check.instance("inner", inner, InnerRun, "an InnerRun")
        _check.instance("train", train, Batch, "a Batch, as Batch.of(inputs, targets) makes it")
        if inner.ranks.size > 1:
            raise ValueError(
                f"scores are not computed by {inner.ranks.size} processes; compute them in one, and share the weights"
            )
        self.folds = _check.integer("folds", folds, low=2, high=max(2, len(train)))
        self.repeats = _check.integer("repeats", repeats, low=1)
        self.decay = _check.in_range("decay", decay, low=0.0, high=1.0, open_high=True)
        self.seed = _check.seed("seed", seed)
        targets = train.targets
        if targets.ndim != 1 or targets.is_floating_point() or (len(targets) and int(targets.min()) < 0):
            raise ValueError(
                f"train's targets must be class ids (n,), got {targets.dtype} {tuple(targets.shape)}; the scores are "
                "of the given label"
            )
        self._train = train
        runs = [inner.fresh(inner.seed + repeat) for repeat in range(self.repeats) for _ in range(self.folds)]
        self._steps, self._runs, self._together = inner.steps, runs, Together(runs, together)
        self._apart = ""
        self.reset()

    @property
    def nets(self) -> int:
        """How many nets are trained for one set of scores."""
        return self.folds * self.repeats

    def reset(self) -> None:
        """Forget what was read."""
        self._read = torch.full((len(_FIELDS), self.repeats, len(self._train)), math.nan, dtype=torch.float64)

    def train_nets(self, number: int, weights: Float[Tensor, " n"]) -> int:
        """Train nets from `number` (from 0) on under `weights` ``(n,)`` and read their folds; return how many.

        All are trained as one where they can be; one that is resumed between two nets goes on as it began, net by net.
        """
        if number == 0 and self._train_as_one(weights):
            return self.nets
        fold = self._fold(number)
        watch = _Watch([fold], self._steps, self.decay)
        run = self._runs[number].fresh()  # which is gone, and its model, when it was read
        model, _ = run(self._train, fold.outside(weights), lambda step, model: watch(step, model, [model]))
        self._file([number], watch.scores([model]))
        return 1

    def _train_as_one(self, weights: Tensor) -> bool:
        """Train all nets as one and read their folds; False, and nothing is done, where they cannot be."""
        folds = [self._fold(number) for number in range(self.nets)]
        watch = _Watch(folds, self._steps, self.decay)
        trained = self._together.trained([self._train] * self.nets, [one.outside(weights) for one in folds], watch)
        self._apart = self._together.apart
        if trained is None:
            return False
        self._file(range(self.nets), watch.scores([model for model, _ in trained]))
        return True

    def _fold(self, number: int) -> _Fold:
        """Return what net `number` is not trained on."""
        repeat, fold = divmod(number, self.folds)
        generator = torch.Generator().manual_seed(self.seed + repeat)
        rows = torch.randperm(len(self._train), generator=generator)[fold :: self.folds].sort().values
        return _Fold(self._runs[number], self._train, rows)

    def _file(self, numbers: Sequence[int], scores: Sequence[Tensor]) -> None:
        for number, one in zip(numbers, scores, strict=True):
            self._read[:, number // self.folds, self._fold(number).rows] = one.cpu()

    def scores(self) -> CrossFitScores:
        """Return the scores of the nets that were trained; NaN where none has read a sample."""
        mean = dict(zip(_FIELDS, self._read.mean(1).to(self._train.index.device), strict=True))
        losses = self._read[_FIELDS.index("loss")].to(self._train.index.device)
        mean.pop("loss")
        disagreement = torch.full_like(losses[0], math.nan)
        if self.repeats > 1 and bool(losses.isfinite().all()):
            from steelyard import selectors  # a room that who asks for `Maple` alone does not need

            disagreement = selectors.rank_disagreement(losses)
        return CrossFitScores(**mean, rank_disagreement=disagreement, losses=losses, apart=self._apart)

    def state_dict(self) -> dict[str, Any]:
        """Return what was read so far, and why it was net by net."""
        return {"read": self._read, "apart": self._apart}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        if state["read"].shape != self._read.shape:
            raise ValueError(f"it has scores {tuple(state['read'].shape)}, not {tuple(self._read.shape)}")
        self._read, self._apart = state["read"].clone(), state["apart"]


class _Watch:
    """What is read of nets while they are trained, each on the samples of its fold, and the average of their weights.

    (Nets whose parameters are stacked have one average of the stacks.)
    """

    def __init__(self, folds: Sequence[_Fold], steps: int, decay: float) -> None:
        self._folds, self._decay = folds, decay
        self._reads = sorted({-(-steps * k // _READS) for k in range(1, _READS + 1)})
        self._average: torch.optim.swa_utils.AveragedModel | None = None

    def __call__(self, step: int, trained: nn.Module, models: Sequence[nn.Module]) -> None:
        """Look at what is `trained`, the one model of `models` or all of them stacked, after `step` steps."""
        if self._average is None:
            from steelyard import selectors

            self._average = selectors.ema(trained, self._decay, bias_corrected=True)
        self._average.update_parameters(trained)
        if step in self._reads:
            if isinstance(trained, Stacked):
                trained.put_back(models)
            for fold, model in zip(self._folds, models, strict=True):
                fold.read(model)

    def scores(self, models: Sequence[nn.Module]) -> list[Float[Tensor, "scores k"]]:
        """Return the scores of each fold's ``k`` samples in the order of `_FIELDS`, float64."""
        assert self._average is not None  # an inner run has a step
        average: nn.Module = self._average.module
        averages = [average]
        if isinstance(average, Stacked):
            averages = [copy.deepcopy(model) for model in models]
            average.put_back(averages)
        several = zip(self._folds, models, averages, strict=True)
        return [fold.scores(model, average) for fold, model, average in several]


class _Fold:
    """The samples that a net is not trained on, and what it says of them."""

    def __init__(self, inner: InnerRun, train: Batch, rows: Tensor) -> None:
        self.rows = rows
        self._inner, self._train = inner, train
        self._margins: list[Tensor] = []
        self._early: Tensor | None = None

    def outside(self, weights: Tensor) -> Tensor:
        """Return `weights` with 0 for these samples."""
        return weights.index_fill(0, self.rows.to(weights.device), 0)

    def read(self, model: nn.Module) -> None:
        """Note the margins in the middle of training, and the first time EL2N."""
        from steelyard import selectors

        logits, _ = self._outputs(model, linear=False)
        targets = self._targets(logits)
        self._margins.append(selectors.aum(logits[None], targets))
        if self._early is None:
            self._early = selectors.el2n(logits.softmax(1), targets)

    def scores(self, model: nn.Module, average: nn.Module) -> Float[Tensor, "scores k"]:
        """Return the scores of the ``k`` samples by the trained model and the average of its weights."""
        assert self._early is not None
        linear = any(isinstance(module, nn.Linear) for module in model.modules())
        logits, hidden = self._outputs(model, linear)
        targets = self._targets(logits)
        loss = nn.functional.cross_entropy(logits.double(), targets, reduction="none")
        lhd = torch.full_like(loss, math.nan)
        if linear:
            from steelyard import selectors

            other, other_hidden = self._outputs(average, linear)
            difference = selectors.state_difference(logits, other, hidden, other_hidden, labels=targets)
            lhd = torch.linalg.vector_norm(difference.double(), dim=1)
        aum = torch.stack(self._margins).double().mean(0)
        correct = (logits.argmax(1) == targets).double()
        return torch.stack([(-loss).exp(), correct, lhd, aum, self._early.double(), loss])

    def _targets(self, logits: Tensor) -> Tensor:
        return self._train.targets[self.rows.to(self._train.targets.device)].to(logits.device)

    @torch.no_grad()
    def _outputs(self, model: nn.Module, linear: bool) -> tuple[Tensor, Tensor]:
        """Return logits ``(k, classes)``, and with `linear` the last `nn.Linear`'s inputs ``(k, features)``."""
        autocast, found, hidden = self._inner.settle(self._train.device), [], []
        with evaluating(model):
            for chunk in self._chunks():
                with torch.autocast(chunk.device.type, dtype=autocast, enabled=autocast is not None):
                    logits, inside = self._one(model, chunk, linear)
                found.append(class_logits(logits.float() if logits.dtype != torch.float64 else logits))
                hidden += inside
        return torch.cat(found), torch.cat(hidden) if hidden else torch.empty(0)

    def _one(self, model: nn.Module, chunk: Batch, linear: bool) -> tuple[Tensor, list[Tensor]]:
        outputs_of = self._inner.objective.outputs_of
        if not linear:
            return outputs_of(model, chunk.inputs), []
        with inputs_of_last_linear(model) as hidden:
            return outputs_of(model, chunk.inputs), [one.float() for one in hidden]

    def _chunks(self) -> Iterator[Batch]:
        size = self._train.chunk if isinstance(self._train, Streamed) else _CHUNK
        for rows in self.rows.split(size or _CHUNK):
            yield self._train.take(rows)
