"""What makes a shipped recipe small enough for a test, by the same overrides that the command line takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from steelyard.experiments.recipe import Recipe, load_recipe
from steelyard.experiments.run import execute, read_run

__all__ = ["IMAGE_PROBLEMS", "check_runs", "overrides", "small"]

IMAGE_PROBLEMS = ("waterbirds", "celeba")
TRAINING = ("steps=2", "batch_size=4", "evaluate_every=2")
# Of each method, beside what its training sections get.
METHODS: Mapping[str, tuple[str, ...]] = {
    "dfr": ("method.retrains=1", "method.strengths=[0.1]"),
    "maple": ("method.steps=1", "method.budget=8", "method.inner.steps=2", "method.inner.batch_size=0"),
    "ordered_sgd": ("method.q=2",),
    "pde": ("method.warm_up=1", "method.every=1"),
}


def overrides(name: str, weights: Path) -> tuple[str, ...]:
    """Return ``field=value`` for each field of the recipe `name` that makes it small.

    Args:
        name: of a recipe that ships.
        weights: a file of a ResNet-18's weights, so that nothing is downloaded.
    """
    recipe = load_recipe(name)
    sections = [field for field in ("training", "identification") if hasattr(recipe.method, field)]
    chosen = [f"method.{section}.{value}" for section in sections for value in TRAINING]
    chosen += METHODS.get(recipe.method.name, ())
    if recipe.data.name in IMAGE_PROBLEMS:
        if recipe.data.inputs == "images":
            chosen += ["model.architecture=resnet18", f"model.weights={weights}", "data.workers=0"]
        else:
            chosen += ["data.backbone.model=resnet18", f"data.backbone.weights={weights}", "data.backbone.workers=0"]
    return tuple(chosen)


def small(name: str, weights: Path) -> Recipe:
    """Return the shipped recipe `name`, made small."""
    return load_recipe(name, overrides(name, weights), seed=0)


def check_runs(name: str, root: Path, weights: Path, out: Path) -> None:
    """Assert that the shipped recipe `name`, made small, runs on the data under `root` into `out` and reads back."""
    recipe = small(name, weights)
    run = execute(recipe, out, name=name, data_root=root)
    assert read_run(out).recipe == recipe
    last = run.history[-1]
    assert last.visible.step == recipe.method.last_step
    assert last.visible.finite
    assert len(last.test.group_count) == 4
