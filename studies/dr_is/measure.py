"""DR-IS measured: which samples an ensemble keeps where an adversary has corrupted labels, and what is certified.

On scikit-learn's digits an attacker who knows the clean labels gives a share of the training samples, those whose
gradient norm ``||p - y||`` it can drive highest, their unlikeliest label. Proxies then train on the corrupted labels;
scores made of the first K of them choose the samples to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import pandas
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from steelyard import selectors, theory
from steelyard._support import _check
from steelyard.experiments.active.images import Digits
from steelyard.experiments.data.corruption import adversarial_flips
from steelyard.experiments.models import MLP
from steelyard.experiments.training.problem import Problem
from steelyard.experiments.training.seeds import derived, generator
from steelyard.experiments.training.trainer import OptimizerSettings, Training, train

__all__ = ["INTERVALS", "SCORES", "DisagreementSettings", "Proxies", "disagreement_tables"]

INTERVALS: tuple[Literal["hoeffding", "bernstein", "jackknife"], ...] = ("hoeffding", "bernstein", "jackknife")
_ATTACKER, PROXIES, _RANDOM, _KEPT = range(4)  # what a seed's derived ones are for


@dataclass(frozen=True)
class DisagreementSettings:
    """What is measured.

    Attributes:
        seeds: of the data split, the attack and the proxies.
        sizes: K, ensemble sizes; the smaller ones are parts of the largest.
        reference: proxies of an ensemble of their own, which stands for the expectation of D.
        share: of the training labels that are corrupted.
        shares: of the training samples that are kept.
        attacker: models whose mean output the attacker has.
        delta: of the certificate.
        training: of every model.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    sizes: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    reference: int = 64
    share: float = 0.2
    shares: tuple[float, ...] = (0.2, 0.5, 0.8)
    attacker: int = 16
    delta: float = 0.05
    training: Training = field(
        default_factory=lambda: Training(
            steps=100, batch_size=64, evaluate_every=10, optimizer=OptimizerSettings("adam", 3e-3)
        )
    )

    def __post_init__(self) -> None:
        for size in (*self.sizes, self.reference):
            _check.integer("sizes", size, low=2)
        if not self.seeds or not self.sizes:
            raise ValueError("seeds and sizes need at least one entry each")
        _check.in_range("share", self.share, low=0.0, high=1.0, open_low=True, open_high=True)


@dataclass(frozen=True)
class Proxies:
    """What proxies say about their training samples.

    Attributes:
        losses: ``(models, n)`` at the given labels, in the end.
        probabilities: ``(models, n, classes)`` in the end.
        margins: ``(models, n)`` AUM: the margin of the given label, averaged over the run.
    """

    losses: Float[Tensor, "models n"]
    probabilities: Float[Tensor, "models n classes"]
    margins: Float[Tensor, "models n"]

    @classmethod
    def of(cls, problem: Problem, training: Training, seeds: Sequence[int]) -> Proxies:
        """Train a model for each seed, which draws its initial parameters and the order of its batches."""
        data = problem.splits.train
        losses, probabilities, margins = [], [], []
        for seed in seeds:
            seen: list[Tensor] = []

            def observe(step: int, model: nn.Module, extra: Mapping[str, float], seen: list[Tensor] = seen) -> None:
                with torch.no_grad():
                    seen.append(model(data.inputs))

            train(replace(problem, seed=seed), training, observe)
            losses.append(problem.loss(seen[-1], data.targets))
            probabilities.append(seen[-1].softmax(1))
            margins.append(selectors.aum(torch.stack(seen), data.targets))
        return cls(torch.stack(losses), torch.stack(probabilities), torch.stack(margins))

    def first(self, models: int) -> Proxies:
        """Return what the first `models` of them say."""
        return Proxies(self.losses[:models], self.probabilities[:models], self.margins[:models])


SCORES: Mapping[str, str] = {
    "random": "random",
    "el2n": "EL2N, high kept",
    "el2n_low": "EL2N, low kept",
    "aum": "AUM, high kept",
    "dr_is": "DR-IS: D, high kept",
    "product": "EL2N x D, high kept",
}
"""Scores by name, and what tables call them. Higher = kept."""


def _scores(proxies: Proxies, labels: Tensor, draws: torch.Generator) -> dict[str, Tensor]:
    hard = selectors.el2n(proxies.probabilities, labels).double()
    disagreement = selectors.rank_disagreement(proxies.losses)
    return {
        "random": torch.rand(len(labels), generator=draws, dtype=torch.float64),
        "el2n": hard,
        "el2n_low": -hard,
        "aum": proxies.margins.mean(0).double(),
        "dr_is": disagreement,
        "product": hard * disagreement,
    }


@dataclass(frozen=True)
class Corrupted:
    """A seed's problem with corrupted labels, and who is who among its samples.

    Attributes:
        problem: its training labels are the corrupted ones.
        wrong: ``(n,)`` the corrupted samples.
        bulk: ``(n,)`` those of them whose clean margin, by the attacker's model, is above the median of all samples.
        boundary: ``(n,)`` the quarter of the clean samples with the least such margin.
    """

    problem: Problem
    wrong: Bool[Tensor, " n"]
    bulk: Bool[Tensor, " n"]
    boundary: Bool[Tensor, " n"]


def corrupted(settings: DisagreementSettings, seed: int) -> Corrupted:
    """Return a draw of the digits, a share of whose training labels the attacker has changed."""
    clean = Problem(Digits().load(seed), MLP(hidden=(64,), head="softmax"), seed)
    data = clean.splits.train
    models = [derived(seed, _ATTACKER, k) for k in range(settings.attacker)]
    known = Proxies.of(clean, settings.training, models).probabilities.mean(0)
    labels, wrong = adversarial_flips(known, data.targets, settings.share, generator(seed, _ATTACKER))
    mine = data.targets[:, None]
    margin = (known.gather(1, mine) - known.scatter(1, mine, -1.0).amax(1, keepdim=True)).squeeze(1)
    boundary = ~wrong & (margin <= margin[~wrong].quantile(0.25))
    splits = replace(clean.splits, train=replace(data, targets=labels))
    return Corrupted(replace(clean, splits=splits), wrong, wrong & (margin > margin.median()), boundary)


def disagreement_tables(
    settings: DisagreementSettings, progress: Callable[[str], None] = lambda text: None
) -> dict[str, pandas.DataFrame]:
    """Return the tables "kept", "drawn" and "gaps", a row for each seed, ensemble size and case.

    kept: corruption (share of the kept samples whose label is wrong), boundary (share of the boundary-clean samples
    that are kept) and, for the largest ensemble, test (clean test accuracy of a model trained on the kept samples).
    drawn: corruption, the mass of the importance-sampling distribution on wrong labels.
    gaps: mean D of the bulk-corrupted and of the boundary-clean samples, their difference `gap`, `order` (the chance
    that a boundary-clean sample has the higher D), `widest` (the widest gap in D, which the certificate splits at),
    radius t, certified, and `deviation`, the largest |D_i - D_i of the reference ensemble|; for each interval of
    `theory.certified_sides` the share of all samples that it certifies above or below the median of D, and the share of
    those that the reference ensemble has on the other side (`wrong_...`).
    """
    rows: dict[str, list[dict[str, float | int | str | bool]]] = {"kept": [], "drawn": [], "gaps": []}
    for seed in settings.seeds:
        progress(f"seed {seed}: attack")
        case = corrupted(settings, seed)
        labels, most = case.problem.splits.train.targets, max(settings.sizes)
        progress(f"seed {seed}: {most + settings.reference} proxies")
        seeds = [derived(seed, PROXIES, k) for k in range(most + settings.reference)]
        everyone = Proxies.of(case.problem, settings.training, seeds)
        expected = selectors.rank_disagreement(everyone.losses[most:])
        for size in settings.sizes:
            scores = _scores(everyone.first(size), labels, generator(seed, _RANDOM, size))
            at = {"seed": seed, "models": size}
            rows["kept"] += [{**at, **row} for row in _kept(settings, case, scores, trains=size == most)]
            rows["drawn"] += [{**at, **row} for row in _drawn(case, scores)]
            ranks = selectors.normalised_ranks(everyone.first(size).losses)
            sides = _sides(settings, ranks, expected)
            rows["gaps"].append({**at, **_gaps(settings, case, scores["dr_is"], size, expected), **sides})
    return {name: pandas.DataFrame(part) for name, part in rows.items()}


def _kept(
    settings: DisagreementSettings, case: Corrupted, scores: Mapping[str, Tensor], *, trains: bool
) -> list[dict[str, float | str]]:
    count = len(case.wrong)
    rows: list[dict[str, float | str]] = []
    for name, score in scores.items():
        for share in settings.shares:
            kept = selectors.top_k(score, round(share * count), generator=generator(case.problem.seed, _KEPT))
            inside = torch.zeros(count, dtype=torch.bool)
            inside[kept] = True
            row: dict[str, float | str] = {"score": name, "share": share}
            row["corruption"] = float(case.wrong[kept].double().mean())
            row["boundary"] = float(inside[case.boundary].double().mean())
            if trains:
                row["test"] = _test_accuracy(settings, case.problem, inside)
            rows.append(row)
    return rows


def _test_accuracy(settings: DisagreementSettings, problem: Problem, inside: Tensor) -> float:
    splits = problem.splits
    kept = replace(problem, splits=replace(splits, train=splits.train.take(inside), facts={}))
    model = train(kept, settings.training, lambda step, model, extra: None)
    with torch.no_grad():
        right = problem.head.predict(model(splits.test.inputs)) == splits.test.targets
    return float(right.double().mean())


def _drawn(case: Corrupted, scores: Mapping[str, Tensor]) -> list[dict[str, float | str]]:
    forms = {"g": None, "g D": scores["dr_is"]}
    return [
        {"form": form, "corruption": float(selectors.importance_probabilities(scores["el2n"], d)[case.wrong].sum())}
        for form, d in forms.items()
    ]


def _sides(settings: DisagreementSettings, ranks: Tensor, expected: Tensor) -> dict[str, float]:
    """Return the shares certified above or below the median, and the shares of those that are wrong, by interval."""
    found = {}
    cut = float(theory.mean_rank_distance(ranks).median())
    for interval in INTERVALS:
        if len(ranks) < 4:
            continue
        sides = theory.certified_sides(ranks, cut, settings.delta, interval)
        certified = sides.above | sides.below
        wrong = (sides.above & (expected < cut)) | (sides.below & (expected > cut))
        found[f"certified_{interval}"] = sides.share
        found[f"wrong_{interval}"] = float(wrong.sum()) / max(1, int(certified.sum()))
    return found


def _gaps(
    settings: DisagreementSettings, case: Corrupted, disagreement: Tensor, models: int, expected: Tensor
) -> dict[str, float | bool]:
    bulk, boundary = disagreement[case.bulk], disagreement[case.boundary]
    split = selectors.certificate(disagreement, models, delta=settings.delta)
    return {
        "bulk": float(bulk.mean()),
        "boundary": float(boundary.mean()),
        "gap": float(boundary.mean() - bulk.mean()),
        "order": float((boundary[:, None] > bulk).double().mean()),
        "widest": split.gap,
        "radius": split.radius,
        "certified": split.holds,
        "deviation": float((disagreement - expected).abs().max()),
    }
