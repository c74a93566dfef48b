"""Run directories: what is in them, what is refused, what is read back."""

import json
import math
import re
from pathlib import Path

import pandas
import pytest
import torch
from safetensors.torch import load_file

from steelyard.experiments.errors import RecipeError, RunError
from steelyard.experiments.runs.recipe import load_recipe
from steelyard.experiments.runs.run import execute, read_run
from steelyard.experiments.training.evaluation import evaluate
from steelyard.experiments.training.problem import Problem
from steelyard.reweight import Reweighting

PLAIN = {"config.json", "environment.json", "metrics.jsonl", "model.safetensors"}
ERM, MAPLE = "coloured_digits/erm", "coloured_digits/maple"


def go(name: str, fast: dict, directory: Path, seed: int = 0, **options: object):  # type: ignore[no-untyped-def]
    recipe = load_recipe(name, fast[name], seed)
    return execute(recipe, directory, name=name, overrides=tuple(fast[name]), **options)  # type: ignore[arg-type]


def test_layout_of_a_plain_run(tmp_path: Path, fast: dict) -> None:
    run = go(ERM, fast, tmp_path / "a" / "run")
    assert {path.name for path in run.directory.iterdir()} == PLAIN
    config = json.loads((run.directory / "config.json").read_text())
    assert config["name"] == ERM
    assert config["recipe"]["method"]["training"]["steps"] == 4
    facts = json.loads((run.directory / "environment.json").read_text())
    assert facts["torch"] == torch.__version__
    assert {"python", "steelyard", "platform", "processors", "threads", "seconds"} <= set(facts)
    lines = [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert set(lines[0]) == {"step", "train", "validation", "test", "extra"}


def test_layout_of_a_run_that_learns_weights(tmp_path: Path, fast: dict) -> None:
    run = go(MAPLE, fast, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == PLAIN | {"result.parquet", "reweighting.safetensors"}
    table = pandas.read_parquet(tmp_path / "result.parquet")
    columns = ["index", "weight", "probability", "target", "environment", "label_flipped", "colour_agrees"]
    assert list(table.columns) == columns
    learned = Reweighting.load(tmp_path / "reweighting.safetensors")
    assert table["probability"].tolist() == learned.probabilities.tolist()
    assert table["weight"].tolist() == learned.weights.tolist()
    splits = run.recipe.data.load(0)
    assert table["target"].tolist() == splits.train.targets.tolist()
    assert table["colour_agrees"].tolist() == splits.facts["colour_agrees"].tolist()
    assert json.loads((tmp_path / "environment.json").read_text())["inner runs"] == "as one"


def test_a_recipe_has_inner_runs_trained_one_after_the_other(tmp_path: Path, fast: dict) -> None:
    fast = {MAPLE: [*fast[MAPLE], "method.together=false"]}
    run = go(MAPLE, fast, tmp_path)
    assert run.environment["inner runs"] == "one after the other: together=False"
    with pytest.raises(RecipeError, match="method.together must be one of 'auto', True, False, got 1"):
        load_recipe(MAPLE, ["method.together=1"])


def test_the_checkpoint_is_the_model_that_was_measured_last(tmp_path: Path, fast: dict) -> None:
    run = go(MAPLE, fast, tmp_path)
    problem = Problem(run.recipe.data.load(0), run.recipe.model, 0)
    model = problem.model()
    model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    last = run.history[-1]
    assert evaluate(problem, model, last.visible.step, last.extra) == last


def test_reading_gives_back_what_was_written(tmp_path: Path, fast: dict) -> None:
    for name in (ERM, MAPLE):
        run = go(name, fast, tmp_path / name)
        again = read_run(tmp_path / name)
        assert (again.name, again.overrides, again.recipe) == (run.name, run.overrides, run.recipe)
        assert again.history == run.history
        assert again.environment == run.environment
        if run.samples is None:
            assert again.samples is None
        else:
            pandas.testing.assert_frame_equal(again.samples, run.samples)


def test_a_seed_gives_the_same_bytes(tmp_path: Path, fast: dict) -> None:
    for name in (ERM, MAPLE):
        for place in ("one", "two"):
            go(name, fast, tmp_path / place / name)
        for path in (tmp_path / "one" / name).iterdir():
            other = tmp_path / "two" / name / path.name
            if path.name == "reweighting.safetensors":  # the order of its header's fields is not defined
                assert Reweighting.load(path) == Reweighting.load(other)
            elif path.name != "environment.json":  # it holds the seconds
                assert path.read_bytes() == other.read_bytes(), path.name
    another = go(ERM, fast, tmp_path / "three", seed=1)
    assert another.history != read_run(tmp_path / "one" / ERM).history


def test_metrics_are_on_disk_while_the_run_goes_on(tmp_path: Path, fast: dict) -> None:
    lengths = []
    go(
        ERM,
        fast,
        tmp_path,
        progress=lambda e: lengths.append(len((tmp_path / "metrics.jsonl").read_text().splitlines())),
    )
    assert lengths == [1, 2]


def test_a_directory_that_is_not_empty(tmp_path: Path, fast: dict) -> None:
    go(ERM, fast, tmp_path)
    with pytest.raises(RunError, match=r"not empty.*--overwrite"):
        go(MAPLE, fast, tmp_path)
    run = go(ERM, fast, tmp_path, seed=1, overwrite=True)
    assert read_run(tmp_path).recipe.seed == run.recipe.seed == 1
    mine = tmp_path / "thesis.tex"
    mine.write_text("years of work")
    with pytest.raises(RunError, match=r"more than a run \(thesis\.tex\)"):
        go(ERM, fast, tmp_path, overwrite=True)
    assert mine.read_text() == "years of work"
    assert read_run(tmp_path).recipe.seed == 1
    with pytest.raises(RunError, match="cannot write"):
        go(ERM, fast, mine)


def test_overwriting_leaves_nothing_of_the_run_before(tmp_path: Path, fast: dict) -> None:
    go(MAPLE, fast, tmp_path)
    (tmp_path / ".model.safetensors.x1.safetensors").write_bytes(b"half")  # as a kill in mid-write leaves it
    go(ERM, fast, tmp_path, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == PLAIN


def test_divergence_is_null_in_the_metrics_and_nan_in_memory(tmp_path: Path, fast: dict) -> None:
    once = "method.training.steps=1"  # the loss is finite before the first step alone: a second one would stop the run
    diverging = [*fast[ERM], "method.training.optimizer={name='sgd', learning_rate=1e30}", once]
    run = execute(load_recipe(ERM, diverging), tmp_path, name=ERM)
    lines = [
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
        for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines[-1]["train"]["loss"] is None
    for last in (run.history[-1], read_run(tmp_path).history[-1]):
        assert not last.visible.finite
        assert last.visible.validation.vrex is not None
        assert not math.isfinite(last.visible.validation.vrex)
        assert last.test.vrex is None


def test_a_run_that_fails_names_recipe_and_seed(tmp_path: Path, fast: dict) -> None:
    recipe = load_recipe(MAPLE, [*fast[MAPLE], "method.budget=2000"], 3)
    with pytest.raises(RunError, match=r"coloured_digits/maple, seed 3: .*budget"):
        execute(recipe, tmp_path, name=MAPLE)


def _damage(kind: str, place: Path) -> None:
    match kind:
        case "no config":
            (place / "config.json").unlink()
        case "unfinished":
            (place / "environment.json").unlink()
        case "half a line":
            text = (place / "metrics.jsonl").read_text()
            (place / "metrics.jsonl").write_text(text[:-20])
        case "not an object":
            (place / "metrics.jsonl").write_text("[1]\n")
        case "the last line":
            text = (place / "metrics.jsonl").read_text()
            (place / "metrics.jsonl").write_text(text.splitlines(keepends=True)[0])
        case "a line twice":
            text = (place / "metrics.jsonl").read_text()
            (place / "metrics.jsonl").write_text(text + text.splitlines(keepends=True)[-1])
        case "a negative step" | "half a step":
            text = (place / "metrics.jsonl").read_text()
            (place / "metrics.jsonl").write_text(text.replace('"step": 2', f'"step": {-2 if "neg" in kind else 1.5}'))
        case "an accuracy above 1":
            text = (place / "metrics.jsonl").read_text()
            (place / "metrics.jsonl").write_text(re.sub('"accuracy": [^,}]*', '"accuracy": 1.25', text))
        case "no metrics":
            (place / "metrics.jsonl").unlink()
        case "no JSON":
            (place / "config.json").write_text("{")
        case "facts that are no JSON":
            (place / "environment.json").write_text("{")
        case "words for numbers":
            text = (place / "metrics.jsonl").read_text()
            (place / "metrics.jsonl").write_text(re.sub('"loss": [^,}]*', '"loss": "much"', text))
        case "no seconds":
            (place / "environment.json").write_text("{}")
        case "a list of facts":
            (place / "environment.json").write_text("[]")
        case "no name":
            config = json.loads((place / "config.json").read_text())
            (place / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "name"}))
        case "no column":
            pandas.DataFrame({"index": [0], "weight": [1.0]}).to_parquet(place / "result.parquet")
        case "no steps":
            (place / "metrics.jsonl").write_text("")
        case "other fields":
            (place / "config.json").write_text('{"name": "x", "overrides": [], "recipe": {"dta": 1}}')
        case "not a table":
            (place / "result.parquet").write_bytes(b"PAR1 nothing")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("no config", "not a run directory"),
        ("unfinished", "did not finish"),
        ("half a line", r"metrics\.jsonl, line 2, is not an evaluated step"),
        ("not an object", r"metrics\.jsonl, line 1, is not an evaluated step"),
        ("words for numbers", r"metrics\.jsonl, line 1, .*expected a number or null, got 'much'"),
        ("no seconds", r"environment\.json must be a table with the run's `seconds`"),
        ("a list of facts", r"environment\.json must be a table"),
        ("no name", r"config\.json cannot be read: there is no field 'name'"),
        ("no column", "has no column 'probability'"),
        ("no steps", r"metrics\.jsonl, line 0: the last evaluated step is missing, the run's last step is 4"),
        ("the last line", r"metrics\.jsonl, line 1: the last evaluated step is 2, the run's last step is 4"),
        ("a line twice", r"metrics\.jsonl, line 3: step 4 comes after step 4"),
        ("a negative step", r"metrics\.jsonl, line 1, .*step must be >= 0, got -2"),
        ("half a step", r"metrics\.jsonl, line 1, is not an evaluated step: Type(.|\n)*1\.5"),
        ("an accuracy above 1", r"metrics\.jsonl, line 1, .*an accuracy must be .*1\.25"),
        ("no metrics", r"metrics\.jsonl cannot be read"),
        ("no JSON", r"config\.json cannot be read"),
        ("facts that are no JSON", r"environment\.json cannot be read"),
        ("other fields", "'dta'; did you mean 'data'"),
        ("not a table", "cannot be read"),
    ],
)
def test_damaged_runs(tmp_path: Path, fast: dict, kind: str, words: str) -> None:
    go(ERM, fast, tmp_path)
    _damage(kind, tmp_path)
    with pytest.raises(RunError, match=words) as caught:
        read_run(tmp_path)
    assert ("run it again with --overwrite" in str(caught.value)) == (kind not in ("no config", "unfinished"))
