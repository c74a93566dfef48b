"""Why a claim does not hold where it does not: what the runs themselves say, round by round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

from steelyard.experiments.active.run import ActiveRun
from steelyard.experiments.active.tables import Cell, Cells
from studies._claims import Claim

__all__ = ["with_causes"]


def with_causes(judged: Sequence[Claim], found: Cells) -> list[Claim]:
    """Return the claims of `studies.noisy_pools.claims.claims`, those that do not hold with what tells why."""
    told: tuple[Callable[[Cells], str], ...] = (_cleaner_at_first, _not_clean, _lowered, _not_the_best)
    return [
        claim if claim.held or not claim.judgements else replace(claim, cause=cause(found))
        for claim, cause in zip(judged, told, strict=True)
    ]


def _cleaner_at_first(found: Cells) -> str:
    """CONF and MARG above RAND: the course of the share over the selections."""
    cases = []
    for cell, runs in found.runs.items():
        selector, tuned, noise = cell
        random = ("rand", False, noise)
        if selector not in ("conf", "marg") or tuned or random not in found.runs:
            continue
        if _mean(runs, "clean_share_selected") > _mean(found.runs[random], "clean_share_selected"):
            course = ", ".join(f"{100 * _mean(runs, 'clean_share', at):.0f}" for at in range(1, len(runs[0].history)))
            cases.append(f"{selector.upper()} on {noise} {course}")
    return (
        "a clean sample of which nothing is learned yet is as unsure as noise is; once these are learned, the noise is "
        f"what is left. Per cent of clean samples, selection by selection: {'; '.join(cases)}"
    )


def _not_clean(found: Cells) -> str:
    cases = []
    for cell, runs in found.runs.items():
        if cell[0] in ("coreset", "badge", "lhd") and cell[2] == "noisy_blank":
            noisy = statistics.fmean(_noisy(run) for run in runs)
            if _mean(runs, "clean_share_selected") <= 0.9:
                cases.append(f"{cell[0].upper()}{' + FT' if cell[1] else ''} {noisy:.1f}")
    return f"noisy samples picked in a round, on average: {', '.join(cases)}"


def _noisy(run: ActiveRun) -> float:
    rounds = run.recipe.schedule
    return rounds.per_round * (1 - run.history[-1]["clean_share_selected"])


def _lowered(found: Cells) -> str:
    """Fine-tuning lowers accuracies: on the first round's samples, which both have, only the training differs."""
    by_noise = {cell[2]: change for cell in found.runs if (change := _first_change(found, cell)) is not None}
    changes = by_noise.values()  # selectors share their first round
    mean, down = 100 * statistics.fmean(changes), sum(change < 0 for change in changes)
    what = "the training alone does it" if mean < 0 else "what is selected by it later does it"
    return (
        "in the first round, whose samples are the same with it and without, it changes the accuracy by "
        f"{mean:+.1f} points on average, down on {down} of {len(changes)} kinds of noise: {what}. What of the training "
        "decides is measured in `results/active/fine_tuning`"
    )


def _first_change(found: Cells, cell: Cell) -> float | None:
    selector, tuned, noise = cell
    plain = (selector, False, noise)
    if not tuned or plain not in found.runs:
        return None
    return _mean(found.runs[cell], "test", 0) - _mean(found.runs[plain], "test", 0)


def _not_the_best(found: Cells) -> str:
    test = {cell: spread.mean for cell, spread in found.last("test").items()}
    noises = dict.fromkeys(noise for _, _, noise in test)
    lost, rivals = [], []
    for noise in noises:
        ours = test.get(("lhd", True, noise))
        others = {cell: value for cell, value in test.items() if cell[2] == noise and cell[:2] != ("lhd", True)}
        if ours is None or not others:
            continue
        best = max(others, key=lambda cell: others[cell])
        if others[best] >= ours:
            rivals.append(best)
            if ("lhd", False, noise) in test:
                lost.append(ours - test["lhd", False, noise])
    plain = sum(not tuned for _, tuned, _ in rivals)
    text = f"the best rival is not fine-tuned in {plain} of {len(rivals)} cases"
    if lost:
        text += f", and fine-tuning changes LHD itself by {100 * statistics.fmean(lost):+.1f} points there"
    return (
        f"{text}. Among the fine-tuned, the authors' code trains LHD alone on the labelled samples before it is "
        "measured; here all are measured alike (both ways: `results/active/fine_tuning`)"
    )


def _mean(runs: Sequence[ActiveRun], metric: str, at: int = -1) -> float:
    return statistics.fmean(run.history[at][metric] for run in runs)
