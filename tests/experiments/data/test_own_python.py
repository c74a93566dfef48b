"""Samples that a function of the user's returns: what it may return, and what is said of what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from steelyard.bilevel import Streamed
from steelyard.experiments.data import OwnPython, OwnTable, Splits
from steelyard.experiments.errors import DataError, RecipeError
from steelyard.experiments.methods import ERM, GroupDRO, Maple
from steelyard.experiments.methods.maple import InnerSettings
from steelyard.experiments.models import MLP, Logistic
from steelyard.experiments.runs.recipe import Recipe
from steelyard.experiments.runs.run import execute
from steelyard.experiments.training.trainer import Training
from tests.support.own import write_patients

SETTINGS: dict = {"attributes": ("sex",), "environment": "hospital"}


def python(function: str = "splits", **settings: object) -> OwnPython:
    name = function if ":" in function else f"tests.experiments.own_function:{function}"
    return OwnPython(**{"function": name, **SETTINGS, **settings})  # type: ignore[arg-type]


def parts(splits: Splits) -> tuple:
    return splits.train, splits.validation, splits.test


def same(one: Splits, other: Splits) -> bool:
    names = ("inputs", "targets", "environment", "group")
    pairs = zip(parts(one), parts(other), strict=True)
    return all(torch.equal(getattr(a, name), getattr(b, name)) for a, b in pairs for name in names)


def test_arrays_lists_and_words_are_checked_and_read_as_a_table_is(tmp_path: Path) -> None:
    file = write_patients(tmp_path / "patients.csv")
    as_table = OwnTable(
        file=str(file), target="ill", id="patient", split="part", features=("age", "dose"), **SETTINGS
    ).load(0)
    found = python(id="patient", standardise=True).load(0)
    assert (found.classes, found.environments, found.groups, found.ids) == (
        as_table.classes,
        as_table.environments,
        as_table.groups,
        as_table.ids,
    )
    for one, other in zip(parts(found), parts(as_table), strict=True):
        torch.testing.assert_close(one.inputs, other.inputs, atol=1e-5, rtol=1e-5)
        assert torch.equal(one.group, other.group)
    assert found.name == "python-tests.experiments.own_function.splits"
    assert list(found.sources) == ["tests.experiments.own_function:splits"]


def test_tensors_and_data_sets_hold_the_same_samples() -> None:
    whole = python("tensors").load(0)
    assert whole.classes == ("False", "True")
    assert same(python("datasets").load(0), whole)
    assert torch.equal(python("splits").load(0).train.inputs, whole.train.inputs)


def test_data_sets_that_stay_where_they_are() -> None:
    whole, streamed = python("tensors").load(0), python("datasets", stream=True).load(0)
    for one, other in zip(parts(streamed), parts(whole), strict=True):
        assert isinstance(one, Streamed)
        assert torch.equal(one.take(torch.arange(len(one))).inputs, other.inputs)
        assert torch.equal(one.group, other.group)


def test_data_sets_of_pairs_and_validation_that_is_dealt() -> None:
    found = python("pairs", attributes=(), environment="", validation_share=0.25).load(0)
    whole = python("tensors").load(0)
    assert len(found.train) + len(found.validation) == len(whole.train)
    assert torch.equal(found.test.targets, whole.test.targets)
    assert "validation dealt" in found.notes[0]


def test_the_seed_decides_what_the_function_draws() -> None:
    data = python("drawn", attributes=(), environment="")
    before = torch.get_rng_state()
    one, again, other = (data.load(seed).train.inputs for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one + 1, other)
    assert torch.equal(before, torch.get_rng_state())


def test_groups_may_be_known_outside_of_training_alone() -> None:
    assert python("hidden").load(0).groups_hidden


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("nothing", "must return a mapping with the keys train, validation, test, got NoneType"),
        ("misspelt", "returned the key 'trian'; did you mean 'train'"),
        ("no_test", "returned no 'test'"),
        ("no_target", r"'train': there is no column 'target'; did you mean 'targte'"),
        ("short", "'validation': 'target' has 2 entries and 'inputs' has 56"),
        ("not_finite", r"'test', row 3, column 1: 'inputs' is nan, expected a finite number"),
        ("unlabelled", "row 5 of train: 'target' is '', expected a value: labels may not be missing"),
        ("fractions", "expected a class"),
        ("wide", r"samples of all splits must have one shape, got \(2,\), \(3,\)|got \(3,\), \(2,\)"),
        ("objects", "'train': must be a mapping of names .* got int"),
        ("fails", r"failed \(.*own_function\.py, line \d+\): ZeroDivisionError: on purpose"),
        ("absent", "has no function 'absent'"),
    ],
)
def test_errors_name_the_function_and_the_row(function: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        python(function).load(0)
    assert str(caught.value).startswith("tests.experiments.own_function:")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"function": "a b:c"}, "function must be 'module:function'"),
        ({"function": "os.system"}, "function must be 'module:function'"),
        ({"split": "part"}, "split is said by the function"),
        ({"features": "target"}, "would be told the answer"),
        ({"standardise": True, "stream": True}, "standardise needs all inputs"),
    ],
    ids=["spaces", "no colon", "split", "answer", "stream"],
)
def test_settings_that_cannot_be(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OwnPython(**{"function": "my:splits", **settings})


def test_a_run_needs_somebodys_word(tmp_path: Path) -> None:
    recipe = Recipe(python(id="patient"), MLP(hidden=(4,)), Maple(60, steps=2, inner=InnerSettings(2)))
    with pytest.raises(RecipeError, match=r"runs code that it names, tests\.experiments\.own_function:splits"):
        execute(recipe, tmp_path / "run", name="test")
    run = execute(recipe, tmp_path / "run", name="test", allow_code=True)
    assert run.samples is not None
    assert run.samples["id"].iloc[0].startswith("p")


def test_streams_are_trained_on_by_batches(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.stream = true is read batch by batch: erm .* or data\.stream = false"):
        Recipe(python("datasets", stream=True), Logistic(), ERM())
    training = Training(steps=3, batch_size=8)
    for number, method in enumerate((ERM(training=training), GroupDRO(training=training))):
        histories = [
            execute(
                Recipe(python("datasets", stream=stream), Logistic(), method),
                tmp_path / f"{number}{stream}",
                name="test",
                allow_code=True,
            ).history[-1]
            for stream in (True, False)
        ]
        assert histories[0].test == histories[1].test


def test_a_module_in_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [one for one in __import__("sys").path if one])
    (tmp_path / "beside_the_recipe.py").write_text(
        "def splits():\n    part = {'inputs': [[0.0], [1.0]] * 4, 'target': ['a', 'b'] * 4}\n"
        "    return dict(train=part, validation=part, test=part)\n"
    )
    found = python("beside_the_recipe:splits", attributes=(), environment="").load(0)
    assert found.classes == ("a", "b")
    assert found.train.inputs.flatten().tolist() == [0.0, 1.0] * 4
