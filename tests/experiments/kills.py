"""Kill runs at random moments, as the system does, and go on with them: ``python -m tests.experiments.kills FOLDER``.

A process of its own: it imports once, and forks each run.
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

from steelyard.experiments.data import Splits
from steelyard.experiments.recipe import Recipe, load_recipe
from steelyard.experiments.run import execute

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
KILLS = 20


def forked(recipe: Recipe, splits: Splits, place: Path) -> int:
    """Start the run in a process of its own, and return that."""
    child = os.fork()
    if not child:
        status = 1
        try:
            execute(recipe, place, name="x", splits=splits, resume=True, checkpoint_every=7)
            status = 0
        finally:
            os._exit(status)
    return child


def finish(recipe: Recipe, splits: Splits, place: Path) -> None:
    """Carry the run out to its end, in a process of its own."""
    assert os.waitpid(forked(recipe, splits, place), 0)[1] == 0


def elapsed(work: Callable[[], None]) -> float:
    """Return the seconds that `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main(folder: Path) -> None:
    """Print, for each kill, the recipe, after how many seconds it came, and whether it met a live run."""
    torch.set_num_threads(1)
    draw = random.Random(0)
    names = sorted(RECIPES)
    seconds: dict[str, float] = {}
    recipes = {name: load_recipe(name, ["model.hidden=[16]", *RECIPES[name]]) for name in names}
    splits = recipes[names[0]].data.load(0)
    for name in names:  # all that is imported on the way, so that the kills come while a run works, not while it loads
        execute(recipes[name], folder / name / "first", name="x", splits=splits)
    for name in names:
        seconds[name] = elapsed(lambda name=name: finish(recipes[name], splits, folder / name / "whole"))
    met = number = 0
    while met < KILLS and number < 4 * KILLS:  # a delay may be longer than the run it was drawn for: then once more
        name, number = names[number % len(names)], number + 1
        place = folder / name / f"kill{number}"
        child, delay = forked(recipes[name], splits, place), draw.random() * seconds[name]
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        checkpoint = (place / "checkpoint.safetensors").exists()
        finish(recipes[name], splits, place)
        met += os.WIFSIGNALED(status)
        fact = {"recipe": name, "delay": delay, "killed": os.WIFSIGNALED(status), "checkpoint": checkpoint}
        print(json.dumps({**fact, "place": str(place)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
