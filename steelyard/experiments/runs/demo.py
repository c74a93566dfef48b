"""The demonstration: ERM, IRMv1, V-REx and MAPLE on coloured digits, offline, with a report to look at."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from steelyard._support._files import write_text
from steelyard.experiments.errors import RunError
from steelyard.experiments.runs.folder import check_place, read_json
from steelyard.experiments.runs.recipe import load_recipe
from steelyard.experiments.runs.run import Run, execute, remove_run
from steelyard.experiments.training.evaluation import Evaluation

__all__ = ["DEMO", "LIST", "demo"]

DEMO = tuple(f"coloured_digits/{method}" for method in ("erm", "irmv1", "vrex", "maple", "oracle"))

LIST = "demo.json"

Watch = Callable[[str, int, Evaluation, int], None]
"""Called as ``watch(recipe name, seed, evaluation, number of the run's last step)``."""


def demo(
    folder: Path,
    watch: Watch,
    recipes: Sequence[str] = DEMO,
    seeds: Sequence[int] = (0, 1, 2),
) -> list[Run]:
    """Carry out the demonstration's runs into `folder`, replacing those of an earlier one.

    The runs made are listed in ``demo.json`` there, and what is listed is removed first, also for seeds that are not
    asked for now. Other runs in the folder stay.

    Args:
        folder: each run goes to ``folder/<recipe>/seed<k>``.
        watch: called after each evaluated step.
        recipes: names of recipes.
        seeds: a run of each recipe for each.

    Raises:
        RunError: the folder cannot be written, or holds files that are not a run's.
    """
    for place in _listed(folder / LIST):
        check_place(folder / place, below=folder)
        if (folder / place).is_dir():
            remove_run(folder / place)
    places = [f"{name}/seed{seed}" for name in recipes for seed in seeds]
    for place in places:
        check_place(folder / place, below=folder)
    write_text(folder / LIST, json.dumps(places, indent=2) + "\n")  # before the runs, which may be interrupted
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


def _listed(path: Path) -> list[str]:
    """Return the runs of an earlier demonstration, as `path` lists them; none where it is missing.

    A place outside of the folder is refused: the list says what is removed.
    """
    if not path.is_file():
        return []
    try:
        places = read_json(path)
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is not a list of an earlier demo's runs ({error}); remove it") from error
    sound = isinstance(places, list) and all(
        isinstance(place, str) and not Path(place).is_absolute() and ".." not in Path(place).parts for place in places
    )
    if not sound:
        raise RunError(f"{path} is not a list of an earlier demo's runs; remove it")
    return places
