"""What scores tell apart: AUCs of wrong, corrupted and colour-aligned training samples, ranked in several ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas
import torch
from torch import Tensor

from steelyard import reweight
from steelyard.experiments.priors import AUM, EL2N, LHD, PriorSettings, RankDisagreement, Score
from steelyard.experiments.training.misclassified import misclassified
from steelyard.experiments.training.problem import Problem, silent
from steelyard.experiments.training.trainer import OptimizerSettings, Training, train
from studies.priors.plan import cell

__all__ = ["area", "separation"]

_LONG = Training(steps=100, optimizer=OptimizerSettings("adam", 1e-3))
SCORES: Mapping[str, Score] = {
    "LHD": LHD(),
    "DR-IS": RankDisagreement(),
    "DR-IS, 100 steps": RankDisagreement(training=_LONG),
    "EL2N": EL2N(),
    "EL2N, 100 steps": EL2N(training=_LONG),
    "AUM": AUM(),
}


def separation(conditions: Sequence[tuple[str, float]], seeds: Sequence[int]) -> pandas.DataFrame:
    """Return for each condition, score and way of ranking the mean over seeds of what the ranks tell apart.

    Columns: uncorrupted, right, aligned: the AUC of the samples whose label was not corrupted, is the digit's, is
    what the colour says (0.5: the ranks say nothing of it; above: these are put first). Ways: among all samples, within
    environment x label, and within a short run's errors and the rest.
    """
    rows = []
    for kind, share in conditions:
        for seed in seeds:
            recipe = cell(kind, share, "MAPLE", "maple", (), seed).load()
            problem = Problem(recipe.data.load(seed), recipe.model, seed)
            rows += [{"kind": kind, "share": share, "seed": seed, **row} for row in _of(problem)]
    keys = ["kind", "share", "score", "ranked"]
    means = pandas.DataFrame(rows).drop(columns="seed").groupby(keys, sort=False, dropna=False).mean().reset_index()
    return means.assign(seeds=" ".join(map(str, seeds)))


def _of(problem: Problem) -> list[dict[str, object]]:
    data, facts = problem.splits.train, problem.splits.facts
    assert data.environment is not None  # Splits has made sure
    errors = misclassified(problem, train(problem, PriorSettings().identification, silent))
    strata = {
        "among all": torch.zeros_like(data.targets),
        "within environment x label": 2 * data.environment + data.targets,
        "within errors": errors.long(),
    }
    truths = {"right": ~facts["label_flipped"], "aligned": facts["colour_agrees"]}
    if "label_corrupted" in facts:
        truths = {"uncorrupted": ~facts["label_corrupted"], **truths}
    rows: list[dict[str, object]] = []
    for name, score in SCORES.items():
        values = score.scores(problem) * (1 if score.keep == "high" else -1)
        for ranked, cells in strata.items():
            pi = reweight.keep_probabilities(values, len(data) / 2, strata=cells)
            rows.append({"score": name, "ranked": ranked, **{fact: area(pi, one) for fact, one in truths.items()}})
    return rows


def area(values: Tensor, members: Tensor) -> float:
    """Return the AUC: how often a member's value is above another sample's, ties counting half.

    Example:
        >>> area(torch.tensor([3.0, 2.0, 2.0, 1.0]), torch.tensor([True, True, False, False]))
        0.875
    """
    inside, outside = values[members], values[~members].sort().values
    below = torch.searchsorted(outside, inside) + torch.searchsorted(outside, inside, right=True)
    return float(below.double().sum()) / (2 * len(inside) * len(outside))
