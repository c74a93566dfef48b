"""Recipes on data of one's own: runs, tables, pages, and what is resumed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pandas
import pytest

from steelyard._support._plain import plain
from steelyard.checkpoint import Stopped
from steelyard.experiments.compare.rows import compare
from steelyard.experiments.errors import RecipeError, RunError
from steelyard.experiments.report.page import render
from steelyard.experiments.runs.recipe import Recipe, load_recipe
from steelyard.experiments.runs.run import Run, execute, read_run
from tests.support.own import patients, write_patients
from tests.support.shrunk import methods_of, runs_end_to_end, shortened

DATA = {"name": "table", "file": "patients.csv", "target": "ill", "id": "patient", "attributes": ["sex"]}
DATA |= {"environment": "hospital", "split": "part", "missing_marks": ["", "NA"]}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_patients(tmp_path / "patients.csv")


def recipe(method: str, seed: int = 0, **data: object) -> Recipe:
    """A method's recipe for digits, made short, on the patients."""
    values = "".join(f"{name} = {json.dumps(value)}\n" for name, value in {**DATA, **data}.items())
    Path("my.toml").write_text(f'base = "{method}"\nselection = "validation_worst_group"\n[data]\n{values}')
    own = ["method.budget=30"] if plain(load_recipe(method).method).get("budget", 0) > 1 else []
    return load_recipe("my.toml", [*shortened(method), *own], seed)


@pytest.mark.parametrize("method", [name for name in methods_of("coloured_digits") if "oracle" not in name])
def test_every_method_runs_on_a_table(method: str, tmp_path: Path) -> None:
    runs_end_to_end(recipe(method), "my.toml", tmp_path, twice=False)


def carried_out(folder: str, **options: object) -> Run:
    return execute(recipe("coloured_digits/maple"), Path(folder), name="my.toml", **options)  # type: ignore[arg-type]


def test_arrays_of_ones_own(tmp_path: Path) -> None:
    rows = numpy.arange(120)
    x = numpy.random.default_rng(0).normal(0, 1, (120, 3)) + (rows % 2)[:, None]
    numpy.savez("own.npz", x=x, y=rows % 2, place=rows // 2 % 2, part=rows // 4 % 3)
    settings = {"name": "arrays", "file": "own.npz", "features": "x", "target": "y", "environment": "place"}
    values = "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
    Path("my.toml").write_text(f'base = "coloured_digits/maple"\n[data]\n{values}split = "part"\n')
    short = [*shortened("coloured_digits/maple"), "method.budget=20"]
    runs_end_to_end(load_recipe("my.toml", short, 0), "my.toml", tmp_path)
    assert {row.dataset for row in compare([read_run("run")])} == {"arrays-own"}


def test_the_samples_have_their_ids() -> None:
    run = carried_out("run")
    frame = patients()
    train = frame[frame["part"] == "train"]
    samples = pandas.read_parquet("run/result.parquet")
    assert samples["id"].tolist() == train["patient"].tolist()
    assert samples["target"].tolist() == (train["ill"] == "yes").astype(int).tolist()
    assert run.samples is not None
    assert read_run("run").samples["id"].tolist() == train["patient"].tolist()  # type: ignore[index]


def test_tables_and_pages_name_the_file_and_say_the_notes() -> None:
    run = carried_out("run")
    assert {row.dataset for row in compare([run])} == {"table-patients"}
    page = render([read_run("run")])
    assert "table-patients: accuracy" in page
    assert "ward: " in page
    assert "no training row has" in page
    assert "groups: ill x sex" in page


def test_a_page_opens_no_file_of_the_users() -> None:
    carried_out("run")
    Path("patients.csv").unlink()
    assert "No images" not in render([read_run("run")])


def test_a_changed_file_is_not_resumed() -> None:
    carried_out("whole")
    asked = iter([0, 0])
    with pytest.raises(Stopped):
        carried_out("run", checkpoint_every=1, stop=lambda: next(asked, 15))
    assert Path("run/checkpoint.safetensors").is_file()
    carried_out("copy", resume=True)  # a missing one is begun
    before = Path("patients.csv").read_text()
    Path("patients.csv").write_text(before + "p999,50.0,0.1,a,2,M,north,train,yes\n")
    for folder in ("run", "copy"):  # unfinished, finished
        with pytest.raises(RunError, match=r"holds a run on another patients.csv: the file has changed since"):
            carried_out(folder, resume=True)
    Path("patients.csv").write_text(before)
    carried_out("run", resume=True)
    for name in ("model.safetensors", "result.parquet", "metrics.jsonl"):
        assert Path("run", name).read_bytes() == Path("whole", name).read_bytes()


def test_runs_on_other_bytes_are_not_averaged() -> None:
    one = carried_out("one")
    Path("patients.csv").write_text(Path("patients.csv").read_text() + "p999,50.0,0.1,a,2,M,north,train,yes\n")
    two = carried_out("two")
    assert {row.label for row in compare([one, two])} == {"my.toml", "my.toml (2)"}


def test_a_table_called_adult_has_no_published_figures() -> None:
    write_patients(Path("adult.csv"))
    run = execute(recipe("coloured_digits/erm", file="adult.csv"), Path("run"), name="my.toml")
    assert "As reported by others" not in render([run])


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("targt", "ill", "unknown field 'data.targt'; did you mean 'target'"),
        ("attributes", "sex", "data.attributes must be a list"),
        ("target", "", "target must name the column"),
    ],
)
def test_a_wrong_recipe_names_the_field(field: str, value: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe("coloured_digits/erm", **{field: value})


def test_notes_and_files_of_a_damaged_run_are_refused() -> None:
    carried_out("run")
    facts = json.loads(Path("run/environment.json").read_text())
    for name, value in {"notes": [1], "files": "x"}.items():
        Path("run/environment.json").write_text(json.dumps({**facts, name: value}))
        with pytest.raises(RunError, match=f"`{name}` must be"):
            read_run("run")
