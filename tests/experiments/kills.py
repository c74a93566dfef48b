"""Kill runs at random moments, as the system does, and resume them.

``python -m tests.experiments.kills FOLDER [--active]``; a process of its own: it imports once, and forks each run.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from steelyard.experiments.active.recipe import ActiveRecipe, load_active_recipe
from steelyard.experiments.active.run import data_of, execute_active
from steelyard.experiments.data import Splits
from steelyard.experiments.runs.recipe import Recipe, load_recipe
from steelyard.experiments.runs.run import execute

RECIPES = {
    "coloured_digits/erm": ["method.training.steps=150", "method.training.batch_size=64"],
    "coloured_digits/jtt": [
        "method.training.steps=80",
        "method.training.batch_size=64",
        "method.identification.steps=80",
        "method.identification.batch_size=64",
    ],
    "coloured_digits/lff": ["method.training.steps=80", "method.training.batch_size=64"],
    "coloured_digits/sparse_irm": ["method.training.steps=80", "method.training.batch_size=64"],
    "coloured_digits/maple": ["method.steps=5", "method.inner.steps=10", "method.folds=2"],
}
ACTIVE = {
    "digits": ["fine_tune=true", "fine_tuning.samples=30", "fine_tuning.epochs.epochs=3", "fine_tuning.confidence=0.1"],
    "four_moons": ["data.samples=200"],
}
SHORT = ["schedule.initial=40", "schedule.per_round=10", "schedule.rounds=2", "epochs.epochs=40"]
KILLS = 20

Work = Callable[[Path], object]
"""Carries out a run in a folder, or resumes the one that is there."""


def works(active: bool) -> dict[str, Work]:
    """Return what is killed, by name."""
    if active:
        return {name: _active(load_active_recipe(name, [*SHORT, *fields])) for name, fields in ACTIVE.items()}
    recipes = {name: load_recipe(name, ["model.hidden=[16]", *RECIPES[name]]) for name in sorted(RECIPES)}
    splits = next(iter(recipes.values())).data.load(0)
    return {name: _run(recipe, splits) for name, recipe in recipes.items()}


def _run(recipe: Recipe, splits: Splits) -> Work:
    return lambda place: execute(recipe, place, name="x", splits=splits, resume=True, checkpoint_every=7)


def _active(recipe: ActiveRecipe) -> Work:
    splits = data_of(recipe)
    return lambda place: execute_active(recipe, place, name="x", splits=splits, resume=True, checkpoint_every=7)


def forked(work: Work, place: Path) -> int:
    """Start the run in a process of its own, and return that."""
    child = os.fork()
    if not child:
        status = 1
        try:
            work(place)
            status = 0
        finally:
            os._exit(status)
    return child


def finish(work: Work, place: Path) -> None:
    """Carry the run out to its end, in a process of its own."""
    assert os.waitpid(forked(work, place), 0)[1] == 0


def elapsed(work: Callable[[], None]) -> float:
    """Return the seconds that `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main(folder: Path, active: bool) -> None:
    """Print, for each kill, the recipe, after how many seconds it came, and whether it met a live run."""
    torch.set_num_threads(1)
    draw = random.Random(0)
    killed = works(active)
    names, seconds = list(killed), {}
    for name in names:  # all that is imported on the way, so that the kills come while a run works, not while it loads
        killed[name](folder / name / "first")
    for name in names:
        seconds[name] = elapsed(lambda name=name: finish(killed[name], folder / name / "whole"))
    met = number = 0
    while met < KILLS and number < 4 * KILLS:  # a delay may be longer than the run it was drawn for: then once more
        name, number = names[number % len(names)], number + 1
        place = folder / name / f"kill{number}"
        child, delay = forked(killed[name], place), draw.random() * seconds[name]
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        checkpoint = (place / "checkpoint.safetensors").exists()
        finish(killed[name], place)
        met += os.WIFSIGNALED(status)
        fact = {"recipe": name, "delay": delay, "killed": os.WIFSIGNALED(status), "checkpoint": checkpoint}
        print(json.dumps({**fact, "place": str(place)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--active" in sys.argv[2:])
