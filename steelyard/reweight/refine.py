"""`Refine`: from the groups that MAPLE found to weights: balance them, clean within them, balance again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.bilevel import Batch
from steelyard.checkpoint import Journal
from steelyard.reweight.contradictions import easy_contradictions
from steelyard.reweight.cross_scores import CrossFitScores, Scoring
from steelyard.reweight.groups import FoundGroups, balance
from steelyard.reweight.identity import described, samples, settings
from steelyard.reweight.inner import InnerRun
from steelyard.reweight.priors import keep_probabilities
from steelyard.reweight.result import Reweighting
from steelyard.reweight.resumable import resumable
from steelyard.reweight.together import TOGETHER, TogetherName

__all__ = ["Refine"]

_SCORES = ("label_probability", "lhd", "aum", "el2n", "rank_disagreement")
_BRACKET = 0.2  # the calibrated share of the high group is looked for in [0.2, 0.8]
_HARD = 1e-6  # a temperature at which a budget keeps the best and drops the rest


@dataclass(frozen=True, eq=False)
class Refine:
    """Turn found groups into weights: equal mass per cell, and out of each cell the samples with improbable labels.

    A round scores all samples under the weights of the round before (`cross_fit_scores`), keeps of every cell the best
    (as many as have a probability of their given label above one half, at least `least_kept` of the cell), and balances
    what is left. A score taken under an ordinary run's weights would call every sample suspect that contradicts the
    shortcut; under balanced weights it does not.

    Where it harms: an adversary who makes the labels of the easiest samples wrong leaves a net that has learned these
    errors. What is improbable to that net is right, and cleaning keeps the wrong ones. Take ``rounds=0`` (balance
    alone) where labels may have been chosen to mislead. Nothing here warns of that; the history has a hint,
    `easy_contradictions` of the first round: above 1/2 nets contradict easy samples more often than hard ones. It was
    right in 27 of 30 fresh cases, but on coloured digits in 8 of 10 only.

    Args:
        inner: how the nets that score are trained; often MAPLE's inner run with more steps: a net that is too short
            knows too little, one that is too long comes back to the shortcut.
        rounds: of scoring and cleaning; 0 balances and trains no net.
        score: what ranks the samples of a cell, an attribute of `CrossFitScores`; of "el2n" the low are kept, of the
            others the high.
        folds, repeats, decay, seed: of `cross_fit_scores`.
        shares: of the mass. "equal" for every cell; or "calibrated": the two found groups' shares are chosen, between
            0.2 and 0.8, so that nets are as often right, out of fold, on one group as on the other (the mean over
            labels), and a group's cells share alike. Equal mass is not enough where the rare group has fewer different
            samples. **It assumes that both groups have wrong labels equally often**: where one has more, nets ought to
            agree less with it, and the calibrated share is wrong.
        calibrations: bisections of the calibrated share, before the first round (nets of clean samples agree with
            both groups whatever the shares, so it is not moved later).
        least_kept: the least share of a cell that is kept.
        together: of `cross_fit_scores`.

    Raises:
        ValueError: an argument out of range; rank disagreement with one repeat; at `fit` see there.

    Example:
        >>> found = result.groups(train.targets)                                             # doctest: +SKIP
        >>> refined = Refine(inner).fit(train, found, journal=Journal("run.safetensors"))    # doctest: +SKIP
        >>> model, _ = inner(train, refined.expected_weights)                                # doctest: +SKIP
    """

    inner: InnerRun
    _: KW_ONLY
    rounds: int = 2
    score: Literal["label_probability", "lhd", "aum", "el2n", "rank_disagreement"] = "label_probability"
    folds: int = 4
    repeats: int = 1
    decay: float = 0.9
    seed: int = 0
    shares: Literal["equal", "calibrated"] = "equal"
    calibrations: int = 4
    least_kept: float = 0.1
    together: TogetherName = "auto"

    def __post_init__(self) -> None:
        _check.instance("inner", self.inner, InnerRun, "an InnerRun")
        _check.integer("rounds", self.rounds, low=0)
        _check.choice("score", self.score, _SCORES)
        _check.integer("folds", self.folds, low=2)
        if _check.integer("repeats", self.repeats, low=1) < 2 and self.score == "rank_disagreement":
            raise ValueError("score='rank_disagreement' compares repeats: give repeats=2 or more")
        _check.choice("shares", self.shares, ("equal", "calibrated"))
        _check.integer("calibrations", self.calibrations, low=1)
        _check.in_range("least_kept", self.least_kept, low=0.0, high=1.0, open_low=True)
        _check.choice("together", self.together, TOGETHER)

    def fit(
        self,
        train: Batch,
        groups: FoundGroups,
        weights: Float[Tensor, " n"] | Numbers | None = None,
        *,
        history: Sequence[Mapping[str, Any]] = (),
        journal: Journal | None = None,
    ) -> Reweighting:
        """Learn which samples to keep and the weight of each cell.

        Args:
            train: ``n`` samples whose targets are class ids.
            groups: found on these samples, in this order, with their targets.
            weights: ``(n,)`` >= 0 where the masses begin; None: ones.
            history: rows that come first in the result's, as those of `Maple.fit`.
            journal: where a checkpoint is written after nets, of which each counts as its steps; with one of this
                computation it is resumed. It may be the one that `Maple.fit` was given.

        Returns:
            Keep-probabilities (0 or 1) and weights, so that the product is balanced and sums to that of `weights`; in
            the history a row for each phase: what it was, the share of the high group, the two groups' accuracies, the
            kept of every cell, and why the nets were trained one after the other ("" where as one).

        Raises:
            ValueError: `groups` of another number of samples, a cell without weight, several ranks, targets that are no
                class ids.
            CheckpointError: the journal has another computation.
        """
        options: dict[str, Any] = {"decay": self.decay, "seed": self.seed, "together": self.together}
        scoring = Scoring(self.inner, train, self.folds, self.repeats, **options)
        _check.instance("groups", groups, FoundGroups, "FoundGroups, as result.groups(train.targets) finds them")
        given = torch.ones(len(train)) if weights is None else _check.floats("weights", weights, ("n",))
        _check.same_length(train=train.index, groups=groups.cells, weights=given)
        base = _check.finite("weights", given).double().cpu()
        cells, high = groups.cells.cpu(), groups.high.cpu()
        journal = Journal() if journal is None else journal
        state = _State(len(train))
        phases = self._phases()
        total = len(phases) * scoring.nets
        if total:
            identity = {} if journal.path is None else self._identity(journal, train, cells, base)
            with (
                journal.stage(identity, refine=state, scoring=scoring) as stage,
                resumable(stage, journal, total),
            ):
                while stage.done < total:
                    phase, number = divmod(stage.done, scoring.nets)
                    weights = self._weights(state, base, cells, high)
                    trained = scoring.train_nets(number, weights.to(train.device))
                    if number + trained == scoring.nets:
                        self._advance(state, phases[phase], scoring.scores(), cells, high)
                        if phases[phase] == "clean" and "clean" not in phases[:phase]:
                            state.rows[-1] |= self._hint(train, weights, scoring.scores())
                        scoring.reset()
                    done = stage.done + trained
                    stage.step(done, worth=trained * self.inner.steps, last=done == total)
        final = self._weights(state, base, cells, high)
        factors = torch.where(state.keep > 0, final / state.keep.clamp_min(1e-300), 0)
        place = train.index.device
        return Reweighting(
            factors.float().to(place), state.keep.float().to(place), [*map(dict, history), *state.rows], train.index
        )

    def _phases(self) -> list[str]:
        """Return what each set of scores is for."""
        return ["calibrate"] * (self.calibrations if self.shares == "calibrated" else 0) + ["clean"] * self.rounds

    def _weights(self, state: _State, base: Tensor, cells: Tensor, high: Tensor) -> Tensor:
        """Return the weights ``(n,)`` of what is kept, with the present share of the high group."""
        return balance(state.keep * base, cells, _shares(cells, high, state.share)) * (
            base.sum() / (state.keep * base).sum()
        )

    def _advance(self, state: _State, phase: str, scores: CrossFitScores, cells: Tensor, high: Tensor) -> None:
        """Finish a phase: file its row, and move the share or what is kept."""
        correct, label = scores.correct.cpu(), scores.label_probability.cpu()
        accuracy = {name: _accuracy(correct, cells, high == side) for name, side in (("low", False), ("high", True))}
        row: dict[str, Any] = {"phase": phase, "share_high": state.share}
        row |= {f"accuracy_{name}": value for name, value in accuracy.items()}
        row |= {"label_probability": float(label.mean()), "apart": scores.apart}
        if phase == "calibrate":
            if accuracy["high"] > accuracy["low"]:
                state.up = state.share
            else:
                state.low = state.share
            state.share = _middle(state.low, state.up)
        else:
            budget = self._budgets(label, cells)
            ranked = getattr(scores, self.score).cpu()
            ranked = -ranked if self.score == "el2n" else ranked
            state.keep = keep_probabilities(ranked, budget, strata=cells, temperature=_HARD).round()
            row |= {f"kept_{cell}": float(state.keep[cells == cell].sum()) for cell in budget}
            row["kept"] = float(state.keep.sum())
        state.rows.append(row)

    def _hint(self, train: Batch, weights: Tensor, scores: CrossFitScores) -> dict[str, float]:
        """Return whether easy samples are contradicted, where that has a figure."""
        figure = easy_contradictions(train, weights, scores.label_probability < 0.5, seed=self.seed)
        return {} if math.isnan(figure) else {"easy_contradictions": figure}

    def _budgets(self, label: Tensor, cells: Tensor) -> dict[int, float]:
        """Return how many samples of each cell are kept."""
        found = {}
        for cell in cells.unique().tolist():
            own = label[cells == cell]
            found[cell] = float(max(int((own > 0.5).sum()), math.ceil(self.least_kept * len(own))))
        return found

    def _identity(self, journal: Journal, train: Batch, cells: Tensor, base: Tensor) -> dict[str, str]:
        """Return what the journal knows this computation by."""
        own = {f"refine.{name}": described(value) for name, value in settings(self).items() if name != "inner"}
        own |= {f"inner.{name}": described(value) for name, value in settings(self.inner).items()}
        own |= {"refine's cells": described(cells), "refine's weights": described(base)}
        return own | samples("train", train, floating=len(journal.identity) <= 1)


class _State:
    """What is kept, with which share of the high group, and the rows so far."""

    def __init__(self, count: int) -> None:
        self.keep = torch.ones(count, dtype=torch.float64)
        self.share, self.low, self.up = 0.5, _BRACKET, 1 - _BRACKET
        self.rows: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"keep": self.keep, "share": [self.share, self.low, self.up], "rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["keep"].shape != self.keep.shape:
            raise ValueError(f"it has {len(state['keep'])} samples, not {len(self.keep)}")
        self.keep = state["keep"].clone()
        self.share, self.low, self.up = state["share"]
        self.rows = [dict(row) for row in state["rows"]]


def _shares(cells: Tensor, high: Tensor, share: float) -> dict[int, float]:
    """Return the share of each cell: the high group's in equal parts, and the low group's."""
    up, low = cells[high].unique().tolist(), cells[~high].unique().tolist()
    return {cell: share / len(up) for cell in up} | {cell: (1 - share) / len(low) for cell in low}


def _accuracy(correct: Tensor, cells: Tensor, member: Tensor) -> float:
    """Return the mean over the cells of a group of the share that is right; NaN for a group without samples."""
    own = [float(correct[cells == cell].mean()) for cell in cells[member].unique().tolist()]
    return sum(own) / len(own) if own else math.nan


def _middle(low: float, up: float) -> float:
    """Return the share halfway in log-odds."""
    odds = math.sqrt(low / (1 - low) * up / (1 - up))
    return odds / (1 + odds)
