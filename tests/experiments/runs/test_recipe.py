"""Recipes: those shipped parse, and errors name the file, the field and the remedy."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from steelyard._support._plain import plain
from steelyard.experiments.errors import RecipeError
from steelyard.experiments.runs.demo import DEMO
from steelyard.experiments.runs.recipe import Recipe, load_recipe, recipe_names
from steelyard.experiments.runs.schema import parse

METHODS = ("erm", "irmv1", "maple", "oracle", "vrex")


def test_the_recipes_that_ship() -> None:
    expected = [f"{data}/{method}" for data in ("colored_mnist", "coloured_digits") for method in METHODS]
    assert set(expected) <= set(recipe_names())
    assert set(DEMO) <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_parses_and_survives_json(name: str) -> None:
    recipe = load_recipe(name, seed=7)
    assert recipe.seed == 7
    assert parse(Recipe, json.loads(json.dumps(plain(recipe))), "config.json") == recipe
    assert name.startswith(recipe.data.name)
    assert recipe.data.grayscale == name.endswith("/oracle")


def test_colored_mnist_has_the_published_settings() -> None:
    recipe = load_recipe("colored_mnist/irmv1")
    assert recipe.model.hidden == (390, 390)
    training, penalty = recipe.method.training, recipe.method.penalty
    assert (training.steps, penalty.at, round(penalty.weight), penalty.before) == (501, 190, 91257, 1.0)
    assert training.optimizer.learning_rate == pytest.approx(4.9e-4, rel=1e-3)
    assert training.l2 == pytest.approx(0.00111, rel=2e-3)
    assert load_recipe("colored_mnist/maple").method.budget == 15_000


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("method.training.steps=20", lambda r: r.method.training.steps == 20),
        ("model.hidden=[8, 8]", lambda r: r.model.hidden == (8, 8)),
        ("method.training.l2=1", lambda r: r.method.training.l2 == 1.0 and type(r.method.training.l2) is float),
        ("selection=last", lambda r: r.selection == "last"),
        ('selection="last"', lambda r: r.selection == "last"),
        ("data.grayscale=true", lambda r: r.data.grayscale is True),
        ("method.training.optimizer.name=sgd", lambda r: r.method.training.optimizer.name == "sgd"),
    ],
)
def test_overrides(override: str, value) -> None:  # type: ignore[no-untyped-def]
    assert value(load_recipe("coloured_digits/erm", [override]))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method.training.stps=20", r"erm\.toml.*'method.training.stps'; did you mean 'steps'"),
        ("metod.name=erm", "'metod'; did you mean 'method'"),
        ("method.training.steps=many", r"method\.training\.steps must be a whole number, got 'many'"),
        ("method.training.steps=1.5", "method.training.steps must be a whole number, got 1.5"),
        ("method.training.steps=true", "must be a whole number, got True"),
        ("method.training.l2=x", "method.training.l2 must be a number"),
        ("data.grayscale=1", "data.grayscale must be true or false"),
        ("method.training.steps=0", "method.training: steps must be >= 1"),
        ("model.hidden=3", "model.hidden must be a list"),
        ("model.hidden=[3, 'a']", r"model.hidden\[1\] must be a whole number"),
        ("model.name=mpl", "model.name must be one of mlp, .*, pretrained_resnet, got 'mpl'; did you mean 'mlp'"),
        ("model.head=one_logits", "did you mean 'one_logit'"),
        ("method.training.optimizer.momentum=0.9", "momentum is a setting of 'sgd'"),
        ("selection=test", "selection must be one of"),
        ("seed.x=1", "'seed' must be a table|unknown field|must be"),
        ("nonsense", "expected field.field=value"),
        ("data=3", "data must be a table of fields with a `name` among coloured_digits, .* got 3"),
        ("train_floor.x=1", "'train_floor' is a value"),
    ],
)
def test_errors_name_file_field_and_remedy(override: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe("coloured_digits/erm", [override])


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('data = {name = "coloured_digits"}\nmodel = {name = "logistic"}\nmethod = {name = "erm"}\n')
    assert load_recipe(str(path)).model.name == "logistic"
    path.write_text('data = {name = "coloured_digits"}\n')
    with pytest.raises(RecipeError, match=r"mine\.toml: the field 'model' is missing"):
        load_recipe(str(path))
    path.write_text('data = {name = "coloured_digits"\n')
    with pytest.raises(RecipeError, match="cannot be read as a recipe"):
        load_recipe(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="cannot be read as a recipe"):
        load_recipe(str(path))
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(str(tmp_path / "none.toml"))


@pytest.mark.parametrize("name", ["coloured_digits/mapel", "../../etc/passwd", ""])
def test_unknown_recipes(name: str) -> None:
    with pytest.raises(RecipeError, match="there is no recipe"):
        load_recipe(name)


def test_a_missing_required_field_in_a_method() -> None:
    rest = {"data": {"name": "coloured_digits"}, "model": {"name": "mlp"}}
    with pytest.raises(RecipeError, match=r"'method\.budget' is missing"):
        parse(Recipe, {**rest, "method": {"name": "subset"}}, "f")
    with pytest.raises(RecipeError, match=r"f: method: budget is missing: give the number of samples to keep, or "):
        parse(Recipe, {**rest, "method": {"name": "maple"}}, "f")


@dataclass(frozen=True)
class Pair:
    both: tuple[int, float]


def test_tuples_of_fixed_length() -> None:
    assert parse(Pair, {"both": [1, 2]}, "f") == Pair((1, 2.0))
    with pytest.raises(RecipeError, match="must have 2 entries, got 3"):
        parse(Pair, {"both": [1, 2, 3]}, "f")
    with pytest.raises(RecipeError, match="must be a table"):
        parse(Pair, [], "f")
