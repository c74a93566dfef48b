"""Any shipped recipe made small, and what a recipe has to hold when it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from steelyard.experiments.recipe import Recipe, load_recipe, recipe_names
from steelyard.experiments.run import execute, read_run
from steelyard.experiments.schema import plain

# What a field of any recipe becomes, by its name, where its value is above this.
SMALL = {"steps": 4, "evaluate_every": 2, "batch_size": 8, "budget": 10, "folds": 2, "width": 2}
SMALL |= {"retrains": 2, "warm_up": 2, "every": 2}


def methods_of(dataset: str) -> list[str]:
    """The shipped recipes of a data set."""
    return [name for name in recipe_names() if name.startswith(f"{dataset}/")]


def small(name: str, *own: str) -> list[str]:
    """Return overrides that make a recipe run in a second: few steps, small batches, a narrow net; then `own`."""
    found = list(_fields(plain(load_recipe(name))))
    overrides = [f"{path}={SMALL[last]}" for path, last, value in found if last in SMALL and value > SMALL[last]]
    nets = [path for path, last, _ in found if last == "hidden"]
    return [*overrides, *(f"{path}=[8]" for path in nets), *own]


def _fields(table: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _fields(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", name, value


def runs_end_to_end(recipe: Recipe, name: str, folder: Path, root: Path | None = None) -> None:
    """Carry `recipe` out twice; its run reads back, ends at the last step, and the seed decides everything."""
    run = execute(recipe, folder / "run", name=name, data_root=root)
    again = read_run(folder / "run")
    assert again.recipe == recipe
    assert [(e.visible, e.test) for e in again.history] == [(e.visible, e.test) for e in run.history]
    assert run.history[-1].visible.step == recipe.method.last_step
    assert all(e.visible.finite for e in run.history)
    second = execute(recipe, folder / "second", name=name, data_root=root)
    for first, repeat in zip(run.history, second.history, strict=True):
        assert (first.visible, first.test) == (repeat.visible, repeat.test)
    one, two = ((folder / place / "model.safetensors").read_bytes() for place in ("run", "second"))
    assert one == two
