"""Every method's recipe for coloured digits runs end to end, small, and its run reads back."""

from pathlib import Path

import pytest

from steelyard.experiments.recipe import load_recipe, recipe_names
from steelyard.experiments.run import execute, read_run

SHORT = ["method.training.steps=6", "method.training.evaluate_every=3", "model.hidden=[8]"]
OWN = {
    "dfr": ["method.retrains=2"],
    "jtt": ["method.identification.steps=3"],
    "maple": ["method.steps=2", "method.inner.steps=3", "model.hidden=[8]"],
    "mrm": ["method.full.steps=3", "method.search.steps=3"],
    "pde": ["method.warm_up=2", "method.every=2"],
}
NAMES = [name.split("/")[1] for name in recipe_names() if name.startswith("coloured_digits/")]


@pytest.mark.parametrize("method", NAMES)
def test_a_recipe_runs_and_reads_back(method: str, tmp_path: Path) -> None:
    overrides = OWN[method] if method == "maple" else SHORT + OWN.get(method, [])
    recipe = load_recipe(f"coloured_digits/{method}", overrides, seed=1)
    run = execute(recipe, tmp_path / "run", name=method)
    again = read_run(tmp_path / "run")
    assert again.recipe == recipe
    assert [e.visible.step for e in again.history] == [e.visible.step for e in run.history]
    assert run.history[-1].visible.step == recipe.method.last_step
    second = execute(recipe, tmp_path / "second", name=method)
    for first, repeat in zip(run.history, second.history, strict=True):
        assert (first.visible, first.test) == (repeat.visible, repeat.test)  # the seed decides everything
    one, two = ((tmp_path / folder / "model.safetensors").read_bytes() for folder in ("run", "second"))
    assert one == two
