"""What a report shows of the priors that runs filed: the scores, whom they favour, DR-IS's certificate."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas
import torch
from torch import Tensor

from steelyard.experiments.errors import RunError
from steelyard.experiments.priors import PRIOR, ComputedPrior
from steelyard.experiments.runs.folder import REMEDY, RESULT
from steelyard.experiments.runs.run import Run

__all__ = ["prior_section"]

Names = Mapping[str, tuple[str, Mapping[bool, str]]]


def prior_section(runs: Sequence[Run], facts: Names) -> dict[str, Any] | None:
    """Return what `templates/prior.html.j2` shows of one recipe's runs; None if they have no prior.

    Args:
        runs: of one recipe, with their samples.
        facts: fact -> (title, {True: name, False: name}); those that the samples lack are passed over.

    Raises:
        RunError: a prior's file is damaged.
    """
    found = [
        (_prior_of(run.directory / PRIOR, run.samples), run.samples)
        for run in runs
        if run.samples is not None and os.path.lexists(run.directory / PRIOR)
    ]
    if not found:
        return None
    first, samples = found[0]
    for run, (prior, _) in zip(runs, found, strict=False):
        if [one.name for one in prior.scores] != [one.name for one in first.scores]:
            raise RunError(f"{run.directory / PRIOR} has other scores than that of the recipe's first seed; {REMEDY}")
    known = {fact: names for fact, (_, names) in facts.items() if fact in samples}
    groups = [(fact, value, name) for fact, names in known.items() for value, name in names.items()]
    terms = [[one.probabilities for one in prior.scores] for prior, _ in found]
    pooled = [prior.probabilities for prior, _ in found]
    frames = [frame for _, frame in found]
    rows = [
        {"name": one.name, "weight": one.weight, "keep": one.keep}
        | {"means": _means([term[k] for term in terms], frames, groups)}
        for k, one in enumerate(first.scores)
    ]
    rows.append({"name": "the prior", "weight": None, "keep": "", "means": _means(pooled, frames, groups)})
    return {"groups": [name for _, _, name in groups], "rows": rows, "certificates": _certificates(found)}


def _prior_of(path: Path, samples: pandas.DataFrame) -> ComputedPrior:
    """Return the prior of a run; RunError if it is not one of its samples, in their order."""
    prior = ComputedPrior.load(path)
    if prior.index.tolist() != samples["index"].tolist():
        raise RunError(f"{path} is not a prior of the samples in {RESULT} beside it; {REMEDY}")
    return prior


def _means(
    probabilities: Sequence[Tensor], frames: Sequence[pandas.DataFrame], groups: Sequence[tuple[str, bool, str]]
) -> list[float | None]:
    """Return each group's mean probability over all seeds' samples; None for a group without a sample."""
    together, table = torch.cat(list(probabilities)).numpy(), pandas.concat(frames)
    members = [(table[fact] == value).to_numpy() for fact, value, _ in groups]
    return [float(together[member].mean()) if member.any() else None for member in members]


def _certificates(found: Sequence[tuple[ComputedPrior, pandas.DataFrame]]) -> list[str]:
    """Return a sentence for each certificate among the scores of each seed."""
    return [
        f"{one.name}: the widest gap of the scores is {one.figures['gap']:.3f}, the certificate needs more than "
        f"2 t = {2 * one.figures['radius']:.3f}: it {'holds' if one.figures['holds'] else 'does not hold'}"
        for prior, _ in found
        for one in prior.scores
        if "radius" in one.figures
    ]
