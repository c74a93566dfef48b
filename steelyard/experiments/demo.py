"""The demonstration: ERM, IRMv1, V-REx and MAPLE on coloured digits, offline, with a report to look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from steelyard.experiments.evaluation import Evaluation
from steelyard.experiments.recipe import load_recipe
from steelyard.experiments.run import Run, execute

__all__ = ["DEMO", "demo"]

DEMO = tuple(f"coloured_digits/{method}" for method in ("erm", "irmv1", "vrex", "maple", "oracle"))

Watch = Callable[[str, int, Evaluation, int], None]
"""Called as ``watch(recipe name, seed, evaluation, number of the run's last step)``."""


def demo(
    folder: Path,
    watch: Watch,
    recipes: Sequence[str] = DEMO,
    seeds: Sequence[int] = (0, 1, 2),
) -> list[Run]:
    """Carry out the demonstration's runs into `folder`, replacing those of an earlier one.

    Args:
        folder: each run goes to ``folder/<recipe>/seed<k>``.
        watch: called after each evaluated step.
        recipes: names of recipes.
        seeds: a run of each recipe for each.

    Raises:
        RunError: the folder cannot be written, or holds files that are not a run's.
    """
    runs = []
    for name in recipes:
        for seed in seeds:
            recipe = load_recipe(name, seed=seed)

            def progress(evaluation: Evaluation, name=name, seed=seed, last=recipe.method.last_step) -> None:  # type: ignore[no-untyped-def]
                watch(name, seed, evaluation, last)

            runs.append(
                execute(
                    recipe,
                    folder / name / f"seed{seed}",
                    name=name,
                    overwrite=True,
                    progress=progress,
                )
            )
    return runs
