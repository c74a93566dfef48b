"""The runs of the study, paired by seed, and the page that shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from steelyard._support._files import write_text
from steelyard.experiments.active import tables
from steelyard.experiments.active.grid import Grid
from steelyard.experiments.active.run import ActiveRun
from steelyard.experiments.compare.rows import Spread
from steelyard.experiments.compare.table import Table

__all__ = ["ARMS", "NOISES", "SELECTORS", "differences", "page", "plan"]

SELECTORS = ("rand", "conf", "marg", "ent", "bald", "coreset", "badge", "lhd")
NOISES = ("noisy_blank", "noisy_diverse", "noisy_class")
ARMS = ("none", "with_labelled", "paper", "more_epochs")

Cell = tuple[str, str]
"""Selector, kind of noise."""

Results = Mapping[str, Mapping[Cell, Sequence[ActiveRun]]]
"""Runs, a seed each and in the same order, by arm and cell."""


def plan(
    recipe: str,
    folder: Path,
    seeds: Sequence[int],
    selectors: Sequence[str],
    noises: Sequence[str],
    set_: Sequence[str],
) -> dict[str, Grid]:
    """Return the runs of each arm.

    The control trains as many more epochs as fine-tuning with the labelled samples has: its own, and those afterwards.
    """
    found = {}
    for arm in ARMS:
        sets = [*set_, f"fine_tune={str(arm != 'none').lower()}"]
        if arm != "none":
            sets.append(f"fine_tuning.name={arm}")
        if arm == "paper" and Path(recipe).stem == "digits":
            sets.append("fine_tuning.magnitude=3")  # 8 x 8 images need less; chosen by validation, seed 100
        grid = Grid.of(recipe, sets, folder / arm, seeds=seeds, selectors=selectors, noises=noises)
        if arm == "more_epochs":
            first = grid.planned[0].recipe
            sets += [f"fine_tuning.epochs.epochs={first.fine_tuning.epochs.epochs + first.epochs.epochs}"]
            sets += [f"fine_tuning.epochs.learning_rate={first.epochs.learning_rate}"]
            sets += ["fine_tuning.epochs.stop_accuracy=1.01"]  # never
            grid = Grid.of(recipe, sets, folder / arm, seeds=seeds, selectors=selectors, noises=noises)
        found[arm] = grid
    return found


def by_cell(runs: Sequence[ActiveRun]) -> dict[Cell, list[ActiveRun]]:
    """Return the runs of an arm by selector and noise, seeds in order."""
    found: dict[Cell, list[ActiveRun]] = {}
    for run in sorted(runs, key=lambda run: run.recipe.seed):
        found.setdefault((run.recipe.selector, run.recipe.noise.name), []).append(run)
    return found


def differences(results: Results, arm: str) -> dict[Cell, Spread]:
    """Return test accuracy after the last round, with an arm less without any, of each seed, by cell."""
    return {
        cell: Spread.of(
            [
                run.history[-1]["test"] - other.history[-1]["test"]
                for run, other in zip(runs, results["none"][cell], strict=True)
            ]
        )
        for cell, runs in results[arm].items()
    }


def page(results: Results, command: str) -> str:
    """Return the README of the results."""
    seeds = [run.recipe.seed for run in next(iter(results["none"].values()))]
    lines = [
        "# Fine-tuning in active learning",
        f"Made by `{command}`.",
        f"Seeds {', '.join(map(str, seeds))}. Test accuracy after the last round, in per cent: mean ± standard "
        "deviation over seeds. All selectors and arms of a seed have the same data, and start from the same samples.",
        "| way to end a round | what it is |\n|---|---|\n"
        "| none | the training on what is labelled |\n"
        "| with_labelled | then labelled and all confident pool samples, predicted labels, distorted at every step; "
        "measured after training on the labels once more |\n"
        "| paper | then Algorithm 2 of LHD's paper to the letter |\n"
        "| more_epochs | then as many epochs more on the labels, as a control |",
    ]
    for noise in dict.fromkeys(noise for _, noise in results["none"]):
        rows = [
            [selector.upper(), *(_accuracy(results[arm][cell]).percent() for arm in ARMS)]
            for cell in results["none"]
            for selector, kind in [cell]
            if kind == noise
        ]
        lines += [f"## {noise}", Table(["method", *ARMS], rows).markdown().rstrip()]
    lines.append("## What it gains")
    lines.append(
        "Points gained over `none`, mean over seeds and its standard error, paired by seed.\n\n"
        + _gains(results).markdown().rstrip()
    )
    for arm in ARMS[1:]:
        gains = differences(results, arm).values()
        up, single = sum(gain.mean > 0 for gain in gains), [value for gain in gains for value in gain.values]
        lines.append(
            f"- `{arm}`: above 0 in {up} of {len(gains)} cases by the mean, in {sum(value > 0 for value in single)} of "
            f"{len(single)} single seeds; {100 * sum(single) / len(single):+.1f} points on average."
        )
    lines.append(_who_is_best(results))
    return "\n\n".join(lines) + "\n"


def _accuracy(runs: Sequence[ActiveRun]) -> Spread:
    return Spread.of([run.history[-1]["test"] for run in runs])


def _gains(results: Results) -> Table:
    gains = {arm: differences(results, arm) for arm in ARMS[1:]}
    rows = [
        [selector.upper(), noise, *(_with_error(gains[arm][(selector, noise)]) for arm in ARMS[1:])]
        for selector, noise in results["none"]
    ]
    return Table(["method", "noise", *ARMS[1:]], rows)


def _with_error(gain: Spread) -> str:
    error = f" ± {100 * gain.std / math.sqrt(gain.count):.1f}" if gain.count > 1 else ""
    return f"{100 * gain.mean:+.1f}{error}"


def _who_is_best(results: Results) -> str:
    """Where LHD stands, when all are measured alike, and when only LHD is trained on the labels after fine-tuning."""
    noises = list(dict.fromkeys(noise for _, noise in results["none"]))
    if not any(selector == "lhd" for selector, _ in results["none"]):
        return ""
    alike, theirs = [], []
    for noise in noises:
        runs = {selector: some for (selector, kind), some in results["with_labelled"].items() if kind == noise}
        same = {selector: _accuracy(some).mean for selector, some in runs.items()}
        # where nobody was confident, one model selects and is measured
        right_after = {
            selector: Spread.of([run.history[-1].get("selecting_test", run.history[-1]["test"]) for run in some]).mean
            for selector, some in runs.items()
        }
        alike.append(_rank("lhd", same))
        theirs.append(_rank("lhd", {**right_after, "lhd": same["lhd"]}))
    return (
        "## LHD with fine-tuning among all\n\nThe authors' code trains LHD's model on the labels after fine-tuning and "
        "measures the others right after it. LHD's place with `with_labelled`, both ways:\n\n"
        + Table(["protocol", *noises], [["the same for all", *alike], ["theirs", *theirs]]).markdown().rstrip()
    )


def _rank(who: str, figures: Mapping[str, float]) -> str:
    return f"{1 + sum(value > figures[who] for value in figures.values())} of {len(figures)}"


def write(results: Results, folder: Path, command: str) -> list[str]:
    """Write README.md and rounds.csv of each arm into `folder`; return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "README.md", page(results, command))
    names = ["README.md"]
    for arm, cells in results.items():
        runs = [run for some in cells.values() for run in some]
        write_text(folder / f"{arm}.csv", tables.rounds_table(tables.cells(runs)))
        names.append(f"{arm}.csv")
    return names
