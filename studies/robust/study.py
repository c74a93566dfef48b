"""Active learning with and without adversarial training, and test selection for retraining.

Three grids of `steelyard active` over the same selectors and seeds; what is compared is in `report`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch

from steelyard.experiments.active.grid import Grid
from steelyard.experiments.active.run import ActiveRun, data_of
from steelyard.experiments.runs.folder import check_place
from studies.robust.attack_library import library_accuracy
from studies.robust.report import write_robust_report

__all__ = ["ELEVEN", "TASKS", "robust"]

ELEVEN = (
    "rand",
    "ent",
    "deep_gini",
    "bald",
    "dropout_entropy",
    "conf",
    "marg",
    "mcp",
    "dfal",
    "egl",
    "coreset_softmax",
)
"""The acquisition functions that Robust Active Learning compares with its own, dre."""

TASKS: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "standard": ("digits", ("attack.epsilon=0",)),
        "robust": ("digits", ()),
        "retraining": ("retraining", ()),
    }
)
"""Task -> recipe (of the folder `recipes`) and the fields set in it."""

_RECIPES = Path(__file__).parent / "recipes"

_LIBRARY = ("rand", "ent", "dre")
"""Selectors whose final models are attacked by the library too: it takes longer than all the rest of a run."""


def robust(
    output: Path,
    runs: Path,
    *,
    seeds: Sequence[int],
    selectors: Sequence[str] = (*ELEVEN, "dre"),
    overrides: Sequence[str] = (),
    library: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    command: str,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
    stop: Callable[[], int] = lambda: 0,
) -> list[str]:
    """Carry out the grids of `TASKS` and write what they show into `output`; return the names of the files.

    Args:
        output: for tables, claims and picture. runs: run directories go to RUNS/<task>/none/<selector>/seed<k>.
        seeds, selectors: a run for each of both, in each task.
        overrides: fields set in every recipe, as for `steelyard active --set`.
        library: attack final models of the adversarially trained runs with the attack library too (`library_accuracy`).
        overwrite, resume: see `execute_active`.
        command: what remakes it.
        progress: called with the trainings done, all of them, and a line of text.
        stop: see `execute_active`.

    Raises:
        AttackLibraryError: `library`, and it is not installed. RunError, RecipeError: see `Grid`.
    """
    grids = {
        task: Grid.of(
            str(_RECIPES / f"{recipe}.toml"), (*fields, *overrides), runs / task, seeds=seeds, selectors=selectors
        )
        for task, (recipe, fields) in TASKS.items()
    }
    for task, grid in grids.items():
        grid.name = f"robust/{TASKS[task][0]}"  # what tables call it, wherever the repository lies
        check_place(grid.folder, below=runs)
        grid.check(overwrite=overwrite, resume=resume)
    total, before = sum(grid.rounds for grid in grids.values()), 0
    for task, grid in grids.items():

        def told(done: int, text: str, task: str = task, before: int = before) -> None:
            progress(before + done, total, f"{task}: {text}")

        grid.execute(
            runs / task,
            data_root=None,
            download=False,
            overwrite=overwrite,
            resume=resume,
            progress=told,
            stop=stop,
        )
        before += grid.rounds
    found = {task: grid.runs for task, grid in grids.items()}
    attacked = {}
    if library:
        for task in ("standard", "robust"):
            chosen = [run for run in found[task] if run.recipe.selector in _LIBRARY]
            for run in chosen:
                progress(total, total, f"library, {task}: {run.recipe.label}, seed {run.recipe.seed}")
                attacked[task, run.recipe.selector, run.recipe.seed] = _under_library(run)
    return write_robust_report(found, attacked, output, command)


def _under_library(run: ActiveRun) -> float:
    """Return the final model's accuracy under the attack library, on the test split."""
    splits = data_of(run.recipe)
    model = run.recipe.build(splits, 0)
    model.load_state_dict({name: value.to(torch.get_default_dtype()) for name, value in run.model.items()})
    attack = run.recipe.measure
    return library_accuracy(
        model, splits.test, attack.epsilon, low=attack.low, high=attack.high, seed=run.recipe.seed, queries=500
    )
