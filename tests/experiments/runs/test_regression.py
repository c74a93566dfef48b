"""A target that is a number: read, trained on by the methods that need no classes, measured in its own units."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

from steelyard.cli import main
from steelyard.experiments.errors import DataError, RecipeError
from steelyard.experiments.runs.recipe import Recipe, load_recipe
from steelyard.experiments.runs.run import execute, read_run
from steelyard.experiments.training.problem import Problem
from steelyard.experiments.training.regression import Errors

METHODS = ("erm", "irmv1", "vrex", "maple", "upweighting", "cvar_dro", "group_dro", "kl_dro", "bayesian_irm", "pde")
CLASSES_ONLY = ("jtt", "lff", "dfr", "sparse_irm", "invrat", "mrm", "subset")
SMALL = ["method.training.steps=6", "method.training.evaluate_every=3"]


def houses(rows: int = 160) -> pandas.DataFrame:
    """Prices by area in two towns; a garden goes with the price in the north alone."""
    rng = np.random.default_rng(0)
    north = np.arange(rows) % 2
    area = rng.uniform(50, 150, rows)
    price = 1000 + 20 * area + rng.normal(0, 50, rows) + 500 * north
    return pandas.DataFrame(
        {
            "area": area.round(1),
            "garden": (rng.normal(0, 1, rows) + north * (price - 3000) / 500).round(2),
            "town": np.array(["south", "north"])[north],
            "price": price.round(2),
        }
    )


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    houses().to_csv("houses.csv", index=False)
    Path("mine.toml").write_text(
        """base = "coloured_digits/erm"
selection = "validation_loss"
[data]
name = "table"
task = "regression"
file = "houses.csv"
target = "price"
attributes = ["town"]
[model]
head = "value"
hidden = [8]
"""
    )
    return tmp_path


def recipe_of(method: str, *more: str) -> Recipe:
    fields = {
        "maple": ["method={name='maple', budget=60, steps=2, folds=1, inner={steps=3}}"],
        "irmv1": ["method={name='irmv1', penalty={weight=1.0, before=0.5, at=2}, training={steps=6}}"],
    }
    own = fields.get(method, [f"method={{name='{method}', training={{steps=6, evaluate_every=3}}}}"])
    return load_recipe("mine.toml", [*own, *more])


@pytest.mark.parametrize("method", METHODS)
def test_methods_that_need_no_classes_run_and_go_on_where_they_were(method: str, mine: Path) -> None:
    recipe = recipe_of(method)
    run = execute(recipe, mine / "run", name="mine.toml")
    assert read_run(mine / "run").history == run.history
    last = run.history[-1]
    assert last.visible.step == recipe.method.last_step
    assert last.test.errors is not None
    assert math.isfinite(last.test.errors.mse)
    assert len(last.test.errors.group_mse) == 2
    assert math.isnan(last.test.accuracy)


def test_errors_are_those_of_the_model_in_the_units_of_the_target(mine: Path) -> None:
    recipe = recipe_of("erm")
    run = execute(recipe, mine / "run", name="mine.toml")
    splits = recipe.data.load(0)
    assert splits.target_scale is not None
    assert splits.classes == ()
    assert splits.groups == ("north", "south")
    assert abs(float(splits.train.targets.mean())) < 1e-5
    mean, deviation = splits.target_scale
    model = Problem(splits, recipe.model, 0).model()
    from safetensors.torch import load_file

    model.load_state_dict(load_file(mine / "run" / "model.safetensors"))
    with torch.no_grad():
        predicted = (mean + deviation * model(splits.test.inputs).squeeze(1).double()).numpy()
    truth = (mean + deviation * splits.test.targets.double()).numpy()
    prices = set(houses()["price"])
    assert all(min(abs(one - price) for price in prices) < 0.01 for one in truth)
    errors = run.history[-1].test.errors
    assert errors is not None
    assert errors.mse == pytest.approx(float(((predicted - truth) ** 2).mean()), rel=1e-5)
    assert errors.mae == pytest.approx(float(abs(predicted - truth).mean()), rel=1e-5)
    from sklearn.metrics import r2_score

    assert errors.r2 == pytest.approx(r2_score(truth, predicted), abs=1e-5)
    assert splits.test.group is not None
    for group in range(2):
        inside = (splits.test.group == group).numpy()
        assert errors.group_mse[group] == pytest.approx(float(((predicted - truth)[inside] ** 2).mean()), rel=1e-5)
        assert errors.group_r2[group] == pytest.approx(r2_score(truth[inside], predicted[inside]), abs=1e-5)
    assert errors.worst_group_mse == max(errors.group_mse)
    assert any("price is standardised by the training rows" in note for note in splits.notes)


def test_an_empty_group_has_no_error_and_damaged_lines_are_refused() -> None:
    found = Errors.of(torch.tensor([1.0]), torch.tensor([2.0]), (0.0, 1.0), torch.tensor([1]), 2)
    assert math.isnan(found.group_mse[0])
    assert found.worst_group_mse == 1.0
    table = json.loads(json.dumps({"mse": 1.0, "mae": 1.0, "r2": None, "group_mse": [None, 1.0]}))
    assert math.isnan(Errors.from_json(table).r2)
    for wrong in ({"mse": "x"}, {"mse": [1.0]}, {"group_mse": 1.0}, {"mse": 1.0}, {"other": 1.0}, [1.0]):
        with pytest.raises(TypeError):
            Errors.from_json(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", CLASSES_ONLY)
def test_methods_that_need_classes_are_refused_by_name(method: str, mine: Path) -> None:
    more = {"subset": ", budget=0.5, prior={scores=[{name='el2n'}]}"}.get(method, "")
    with pytest.raises(RecipeError, match=f"method '{method}' needs classes; .* take one of erm, irmv1, vrex, maple"):
        load_recipe("mine.toml", [f"method={{name='{method}'{more}}}"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.head=one_logit", "needs model.head = 'value', got 'one_logit'"),
        ("data.task=classification", "model.head = 'value' predicts a number"),
        ("selection=validation_mean", "looks at accuracies, which a regression has not; take last, validation_loss"),
        ("data.classes=['a', 'b']", "classes are for task = 'classification'"),
        ("data.task=regresion", "did you mean 'regression'|must be one of"),
    ],
    ids=["head", "task", "selection", "classes", "misspelt"],
)
def test_what_does_not_fit_a_regression(override: str, words: str, mine: Path) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe("mine.toml", [override])


def test_targets_that_are_no_numbers_or_all_the_same(mine: Path) -> None:
    table = houses()
    table["price"] = table["price"].astype(object)
    table.loc[3, "price"] = "cheap"
    table.to_csv("houses.csv", index=False)
    with pytest.raises(DataError, match=r"houses\.csv, line 5: 'price' is 'cheap', expected a number"):
        recipe_of("erm").data.load(0)
    table.assign(price=1.5).to_csv("houses.csv", index=False)
    with pytest.raises(DataError, match=r"'price' is 1\.5 in every training row"):
        recipe_of("erm").data.load(0)


def test_a_number_is_never_taken_for_a_regression_unasked(mine: Path) -> None:
    recipe = load_recipe("mine.toml", ["data.task=classification", "model.head=one_logit"])
    with pytest.raises(DataError, match=r"make classes of them.* or set data.task = 'regression'"):
        recipe.data.load(0)


def test_the_command_compares_and_tunes_regressions(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--set", "method.training.steps=2"]
    assert main(["run", "mine.toml", *short, "--seeds", "0", "1"]) == 0
    shown = capsys.readouterr().out
    assert "Errors on table-houses" in shown
    assert "test R2" in shown
    assert "nan" not in shown
    assert main(["compare", "runs/mine/seed0", "runs/mine/seed1", "--out", "table"]) == 0
    text = Path("table/comparison.md").read_text()
    assert (
        "| recipe | step taken | train MSE | validation MSE | test MSE | test MAE | test R2 | test worst-group MSE |"
        in text
    )
    assert "nan" not in text + Path("table/comparison.csv").read_text() + Path("table/summary.json").read_text()
    assert "test MSE" in Path("table/table-houses.svg").read_text()
    assert not Path("table/table-houses_bars.svg").exists()
    assert main(["report", "runs/mine/seed0", "runs/mine/seed1"]) == 0
    page = Path("runs/mine/report.html").read_text()
    assert "table-houses: errors" in page
    assert "test worst-group MSE" in page
    assert "<td>nan" not in page
    assert main(["tune", "mine.toml", *short, "--trials", "2", "--groups", "validation"]) == 0
    chosen = load_recipe("runs/tune/mine/chosen.toml")
    assert chosen.selection == "validation_worst_group_error"


def test_weights_of_a_regression_are_told_with_its_targets(mine: Path) -> None:
    run = execute(recipe_of("maple", "data.id="), mine / "run", name="mine.toml")
    table = read_run(mine / "run").samples
    assert table is not None
    prices = houses()["price"].to_numpy()
    assert np.allclose(table["target"], prices[table["id"].astype(int)], atol=0.01)
    assert run.samples is not None


def test_resuming_a_regression_ends_in_the_same_bytes(mine: Path) -> None:
    recipe = recipe_of("vrex")
    execute(recipe, mine / "whole", name="mine.toml")

    def die(evaluation: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(recipe, mine / "broken", name="mine.toml", checkpoint_every=1, progress=die)
    execute(recipe, mine / "broken", name="mine.toml", resume=True)
    for name in ("metrics.jsonl", "model.safetensors", "config.json"):
        assert (mine / "whole" / name).read_bytes() == (mine / "broken" / name).read_bytes()
    with pytest.raises(RecipeError, match="needs the groups|group"):
        execute(
            replace(load_recipe("mine.toml", ["data.attributes=[]", "selection=validation_worst_group_error"])),
            mine / "none",
            name="mine.toml",
        )
