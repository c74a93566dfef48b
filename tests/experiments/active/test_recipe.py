"""Active recipes: those that ship parse and build, errors name the field and the remedy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from steelyard._support._plain import plain
from steelyard.experiments.active.finetuning import Algorithm2
from steelyard.experiments.active.noise import NoisyDiverse
from steelyard.experiments.active.recipe import (
    ActiveRecipe,
    active_recipe_names,
    load_active_recipe,
    with_dropout,
)
from steelyard.experiments.errors import RecipeError
from steelyard.experiments.runs.schema import parse

SHAPES = {"four_moons": (2,), "digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar10": (3, 32, 32), "svhn": (3, 32, 32)}


@pytest.mark.parametrize("name", active_recipe_names())
def test_shipped_recipes_parse_and_their_nets_take_the_data(name: str) -> None:
    recipe = load_active_recipe(name)
    assert parse(ActiveRecipe, plain(recipe), "again") == recipe
    shape = SHAPES[recipe.data.name]
    net = with_dropout(recipe.model.build(shape, 10, seed=0), recipe.dropout).eval()
    assert net(torch.rand(2, *shape)).shape == (2, 10)


def test_the_settings_of_the_paper() -> None:
    assert {"four_moons", "digits", "mnist", "cifar10", "svhn"} <= set(active_recipe_names())
    for name in ("cifar10", "svhn"):
        recipe = load_active_recipe(name)
        assert (recipe.schedule.initial, recipe.schedule.per_round, recipe.schedule.rounds) == (2000, 1000, 10)
        assert (recipe.epochs.epochs, recipe.epochs.batch_size, recipe.epochs.learning_rate) == (500, 64, 1e-4)
        assert (recipe.epochs.stop_accuracy, recipe.decay, recipe.noise.share) == (0.99, 0.999, 0.8)
        tuning = recipe.fine_tuning
        assert (tuning.confidence, tuning.operations, tuning.epochs.learning_rate) == (0.8, 4, 1e-2)
        assert recipe.model.width == 16


def test_dropout_goes_in_front_of_the_last_layer_wherever_it_is() -> None:
    inner = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    net = with_dropout(nn.Sequential(inner, nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))), 0.5)
    assert isinstance(net[1][1], nn.Sequential)
    assert isinstance(net[1][1][0], nn.Dropout)
    assert sum(isinstance(module, nn.Dropout) for module in net.modules()) == 1
    plain_net = nn.Sequential(nn.Linear(2, 2))
    assert with_dropout(plain_net, 0.0) is plain_net
    assert isinstance(plain_net[0], nn.Linear)
    with pytest.raises(ValueError, match=r"no nn\.Linear"):
        with_dropout(nn.Sequential(nn.ReLU()), 0.5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("selector=ldh", "selector must be one of .*did you mean 'lhd'"),
        ("noise.name=noisy_blanc", "noise.name must be one of .*did you mean 'noisy_blank'"),
        ("noise.share=1.5", "share must be finite and in"),
        ("model.head=one_logit", "model.head must be 'softmax'"),
        ("schedule.round=3", "unknown field 'schedule.round'; did you mean 'rounds'"),
        ("dropout=0", "dropout must be|needs dropout"),
        ("device=gpu", "device must be a torch device"),
        ("seed=-1", "seed must be"),
    ],
)
def test_errors_name_the_field_and_the_remedy(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_active_recipe("digits", [override, *(["selector=bald"] if override.startswith("dropout") else [])])


def test_four_moons_cannot_be_augmented() -> None:
    with pytest.raises(RecipeError, match="fine_tune"):
        load_active_recipe("four_moons", ["fine_tune=true"])
    with pytest.raises(RecipeError, match="did you mean 'four_moons'"):
        load_active_recipe("for_moons")


def test_an_older_runs_recipe_is_read_as_what_it_was() -> None:
    table = plain(load_active_recipe("digits"))
    table["fine_tuning"] = {"confidence": 0.8, "operations": 4, "magnitude": 3, "cutout": 0.25, "samples": 512}
    table["noise"] = {"name": "noisy_diverse", "share": 0.8, "colours": 100, "labels": 3}
    recipe = parse(ActiveRecipe, ActiveRecipe.upgraded(table), "config.json")
    assert recipe.fine_tuning == Algorithm2(magnitude=3, samples=512)
    assert recipe.noise == NoisyDiverse(unique=100)
    assert ActiveRecipe.upgraded(plain(recipe)) == plain(recipe)
