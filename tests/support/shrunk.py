"""Any shipped recipe made small, and what a recipe has to hold when it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from steelyard._support._plain import plain
from steelyard.experiments.runs.recipe import Recipe, load_recipe, recipe_names
from steelyard.experiments.runs.run import execute, read_run

# What a field of any recipe becomes, by its name, where its value is above this.
SMALL = {"steps": 4, "evaluate_every": 2, "batch_size": 8, "budget": 10, "folds": 2, "width": 2}
SMALL |= {"retrains": 2, "warm_up": 2, "every": 2}
STEPS = ["steps=4", "batch_size=50", "evaluate_every=2"]


def methods_of(dataset: str) -> list[str]:
    """The shipped recipes of a data set."""
    return [name for name in recipe_names() if name.startswith(f"{dataset}/")]


def small(name: str, *own: str) -> list[str]:
    """Return overrides that make a recipe run in a second: few steps, small batches, a narrow net; then `own`."""
    found = list(_fields(plain(load_recipe(name))))
    overrides = [f"{path}={SMALL[last]}" for path, last, value in found if last in SMALL and value > SMALL[last]]
    overrides += [f"{path}=maple" for path, last, _ in found if last == "one_hump"]  # a few steps find no groups
    nets = [path for path, last, _ in found if last == "hidden"]
    return [*overrides, *(f"{path}=[8]" for path in nets), *own]


def short(name: str, *more: str) -> Recipe:
    """A recipe of coloured digits whose stages have a handful of steps; see `shortened`."""
    return load_recipe(name, [*shortened(name), *more], 1)


def shortened(name: str) -> list[str]:
    """Overrides: a handful of steps a stage, on minibatches; penalties and rates change on the way."""
    method = name.removeprefix("coloured_digits/")
    fields = ["model.hidden=[8]", *(f"method.training.{field}" for field in STEPS)]
    match method:
        case "maple":
            fields = ["model.hidden=[8]", "method.steps=3", "method.inner.steps=2", "method.folds=2"]
            fields += ["method.evaluate_every=1"]
        case "maple_prior":
            fields = ["model.hidden=[8]", "method.steps=3", "method.inner.steps=2", "method.folds=2"]
            fields += ["method.evaluate_every=1"]
            fields += ["method.prior.scores=[{name='el2n', models=2, training={steps=2}}]"]
        case "subset":
            fields += ["method.prior.scores=[{name='lhd', training={steps=3}}]"]
        case "jtt":
            fields += [f"method.identification.{field}" for field in STEPS]
        case "mrm":
            fields += [f"method.{stage}.{field}" for stage in ("full", "search") for field in STEPS]
            fields += ["method.sparsity=0.0"]
        case "pde":
            fields += ["method.warm_up=2", "method.every=1", "method.late_rate=0.1"]
        case "ordered_sgd":
            fields += ["method.q=8"]
        case "sparse_irm" | "bayesian_irm" | "irmv1" | "vrex":
            fields += ["method.penalty={weight=10.0, before=1.0, at=2}"]
        case "kl_dro":
            fields += ["method.memory=0.5"]
        case "dfr":
            fields += ["method.retrains=1", "method.strengths=[0.1]"]
    return fields


def _fields(table: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _fields(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", name, value


def _settled_as(run: Any, recipe: Any) -> Any:
    """`recipe` with the precision that the run has chosen where the recipe leaves it open."""
    changed = {}
    for field in dataclasses.fields(recipe):
        one, chosen = getattr(recipe, field.name), getattr(run, field.name)
        if dataclasses.is_dataclass(one) and dataclasses.is_dataclass(chosen):
            changed[field.name] = _settled_as(chosen, one)
        elif field.name == "bfloat16" and one == "auto":
            changed[field.name] = chosen
    return dataclasses.replace(recipe, **changed)


def runs_end_to_end(recipe: Recipe, name: str, folder: Path, root: Path | None = None, *, twice: bool = True) -> None:
    """Carry `recipe` out; its run reads back and ends at the last step. If `twice`, the seed decides everything."""
    run = execute(recipe, folder / "run", name=name, data_root=root)
    again = read_run(folder / "run")
    assert again.recipe == run.recipe == _settled_as(run.recipe, recipe)
    assert [(e.visible, e.test) for e in again.history] == [(e.visible, e.test) for e in run.history]
    assert run.history[-1].visible.step == recipe.method.last_step
    assert all(e.visible.finite for e in run.history)
    if not twice:
        return
    second = execute(recipe, folder / "second", name=name, data_root=root)
    for first, repeat in zip(run.history, second.history, strict=True):
        assert (first.visible, first.test) == (repeat.visible, repeat.test)
    one, two = ((folder / place / "model.safetensors").read_bytes() for place in ("run", "second"))
    assert one == two
