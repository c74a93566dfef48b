"""The runs of the study, paired by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from steelyard.experiments.active.grid import Grid
from steelyard.experiments.active.recipe import ActiveRecipe
from steelyard.experiments.active.run import ActiveRun
from steelyard.experiments.compare.rows import Spread

__all__ = ["ARMS", "NOISES", "SELECTORS", "Arm", "Cell", "Results", "by_cell", "differences", "plan"]

SELECTORS = ("rand", "conf", "marg", "ent", "bald", "coreset", "badge", "lhd")
NOISES = ("noisy_blank", "noisy_diverse", "noisy_class")
Arm: TypeAlias = Literal["none", "with_labelled", "paper", "more_epochs"]
ARMS: tuple[Arm, ...] = ("none", "with_labelled", "paper", "more_epochs")

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
    arms: Sequence[str] = ARMS,
    once: Sequence[str] = (),
    paired_seeds: int = 0,
) -> dict[str, Grid]:
    """Return the runs of each arm; "none" is one of them and comes first.

    The control trains as many more epochs as fine-tuning with the labelled samples has: its own, and those afterwards.

    Args:
        recipe, folder, seeds, selectors, noises, set_: see `Grid.of`.
        arms: of `ARMS`.
        once: more selectors, which are run on the first seed alone.
        paired_seeds: arms other than "none" are run on so many of the seeds, the first ones; 0: on all.
    """
    found = {}
    for arm in dict.fromkeys(("none", *arms)):
        sets = [*set_, f"fine_tune={str(arm != 'none').lower()}"]
        if arm != "none":
            sets.append(f"fine_tuning.name={arm}")
        if arm == "paper" and Path(recipe).stem == "digits":
            sets.append("fine_tuning.magnitude=3")  # 8 x 8 images need less; chosen by validation, seed 100
        run_on = tuple(seeds) if arm == "none" or not paired_seeds else tuple(seeds[:paired_seeds])

        def made(sets: Sequence[str], arm: str = arm, run_on: tuple[int, ...] = run_on) -> Grid:
            return Grid.of(recipe, sets, folder / arm, seeds=run_on, selectors=(*selectors, *once), noises=noises)

        grid = made(sets)
        if arm == "more_epochs":
            grid = made([*sets, *_as_long(grid.planned[0].recipe)])
        grid.planned = tuple(
            one for one in grid.planned if one.recipe.selector not in once or one.recipe.seed == run_on[0]
        )
        found[arm] = grid
    return found


def _as_long(recipe: ActiveRecipe) -> list[str]:
    """Return the fields that make the control as long as fine-tuning and the training after it."""
    return [
        f"fine_tuning.epochs.epochs={recipe.fine_tuning.epochs.epochs + recipe.epochs.epochs}",
        f"fine_tuning.epochs.learning_rate={recipe.epochs.learning_rate}",
        "fine_tuning.epochs.stop_accuracy=1.01",  # never
    ]


def by_cell(runs: Sequence[ActiveRun]) -> dict[Cell, list[ActiveRun]]:
    """Return the runs of an arm by selector and noise, seeds in order."""
    found: dict[Cell, list[ActiveRun]] = {}
    for run in sorted(runs, key=lambda run: run.recipe.seed):
        found.setdefault((run.recipe.selector, run.recipe.noise.name), []).append(run)
    return found


def differences(results: Results, arm: str, at: int = -1) -> dict[Cell, Spread]:
    """Return test accuracy after round `at` (default: the last), with an arm less without any, by cell.

    A value for each seed that both were run on, in order.
    """
    found = {}
    for cell, runs in results[arm].items():
        others = {run.recipe.seed: run.history[at]["test"] for run in results["none"][cell]}
        found[cell] = Spread.of([run.history[at]["test"] - others[run.recipe.seed] for run in runs])
    return found
