"""What a recipe leaves open, bfloat16 = "auto", is chosen once, when a run begins."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from steelyard.checkpoint import Stopped
from steelyard.experiments.errors import RecipeError
from steelyard.experiments.runs import settled as settled_module
from steelyard.experiments.runs.folder import CHECKPOINT, CONFIG
from steelyard.experiments.runs.recipe import Recipe, load_recipe
from steelyard.experiments.runs.run import execute, read_run
from steelyard.experiments.training.precision import Measured, measured, takes_bfloat16

SHORT = ["method.training.steps=4", "method.training.evaluate_every=2", "method.training.batch_size=16"]
OPEN = [*SHORT, 'method.training.bfloat16="auto"']


def same(one: Path, other: Path) -> bool:
    """Whether two runs ended in the same model, bit for bit."""
    models = [load_file(place / "model.safetensors") for place in (one, other)]
    return all(torch.equal(value, models[1][name]) for name, value in models[0].items())


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("coloured_digits/erm", OPEN)


def answer(monkeypatch: pytest.MonkeyPatch, bfloat16: float) -> list[str]:
    """Have a product in float32 take one second and one in bfloat16 so many; return who asked."""
    asked: list[str] = []

    def said(device: str) -> Measured:
        asked.append(device)
        return Measured(1.0, bfloat16)

    monkeypatch.setattr(settled_module, "measured", said)
    return asked


@pytest.mark.parametrize(
    ("seconds", "chosen"), [(0.5, True), (0.95, False), (3.0, False)], ids=["half", "like", "more"]
)
def test_the_faster_is_chosen_and_stands_in_the_run(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, chosen: bool
) -> None:
    asked = answer(monkeypatch, seconds)
    run = execute(recipe, tmp_path / "run", name="x")
    assert asked == ["cpu"]
    assert run.recipe.method.training.bfloat16 is chosen  # type: ignore[union-attr]
    assert json.loads((tmp_path / "run" / CONFIG).read_text())["recipe"]["method"]["training"]["bfloat16"] is chosen
    fixed = execute(
        load_recipe("coloured_digits/erm", [*SHORT, f"method.training.bfloat16={str(chosen).lower()}"]),
        tmp_path / "fixed",
        name="x",
    )
    assert same(fixed.directory, run.directory)


def test_a_resumed_run_keeps_the_choice_where_another_is_faster(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, 0.5)
    whole, steps = execute(recipe, tmp_path / "whole", name="x"), count()
    with pytest.raises(Stopped):
        execute(recipe, tmp_path / "cut", name="x", checkpoint_every=1, stop=lambda: 15 * (next(steps) > 1))
    assert (tmp_path / "cut" / CHECKPOINT).is_file()
    asked = answer(monkeypatch, 3.0)
    resumed = execute(recipe, tmp_path / "cut", name="x", resume=True)
    assert asked == []
    assert same(resumed.directory, whole.directory)
    assert execute(recipe, tmp_path / "cut", name="x", resume=True).recipe == read_run(tmp_path / "whole").recipe
    assert asked == []  # a finished one, too, is that of this recipe


def test_a_recipe_that_leaves_nothing_open_asks_for_no_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answer(monkeypatch, 0.5)
    execute(load_recipe("coloured_digits/erm", SHORT), tmp_path / "run", name="x")
    assert asked == []


def test_a_product_is_measured_once_a_process() -> None:
    found = measured("cpu")
    assert min(found) > 0
    assert measured("cpu") is found
    assert takes_bfloat16("auto", torch.device("cpu")) is found.faster
    assert takes_bfloat16(True, "cpu")
    assert not takes_bfloat16(False, "cpu")


@pytest.mark.parametrize("value", ['"yes"', "1", "0.0"])
def test_what_bfloat16_may_be(value: str) -> None:
    with pytest.raises(RecipeError, match="bfloat16 must be one of True, False, 'auto'"):
        load_recipe("coloured_digits/erm", [f"method.training.bfloat16={value}"])
