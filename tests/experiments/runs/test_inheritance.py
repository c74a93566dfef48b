"""Recipes that begin from another one: how tables are merged, where a base is found, what is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard import experiments
from steelyard._support._plain import plain
from steelyard._support._toml import tomllib
from steelyard.cli import main
from steelyard.experiments.active.recipe import load_active_recipe
from steelyard.experiments.errors import RecipeError
from steelyard.experiments.runs.inheritance import DEEPEST, merged, read_with_bases
from steelyard.experiments.runs.recipe import load_recipe, names_in, recipe_names
from tests.support.places import STUDIES

STUDY = STUDIES / "robust" / "recipes"
EXPERIMENTS = Path(experiments.__file__).parent
FOLDERS = {"run": EXPERIMENTS / "recipes", "active": EXPERIMENTS / "active" / "recipes", "robust": STUDY}
FILES = [(kind, path) for kind, folder in FOLDERS.items() for path in sorted(folder.rglob("*.toml"))]
WHOLE = 'data = {name = "coloured_digits"}\nmodel = {name = "mlp", hidden = [8]}\nmethod = {name = "erm"}\n'


def path_of(name: str, folder: Path) -> Path:
    return folder / f"{name}.toml"


def leaves(table: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


def without(table: dict[str, Any], leaf: tuple[str, ...]) -> dict[str, Any]:
    copy = deepcopy(table)
    inner = copy
    for key in leaf[:-1]:
        inner = inner[key]
    del inner[leaf[-1]]
    return copy


@pytest.mark.parametrize(("kind", "path"), FILES, ids=lambda x: x if isinstance(x, str) else x.name)
def test_no_shipped_recipe_says_what_its_base_says(kind: str, path: Path) -> None:
    own = tomllib.loads(path.read_text(encoding="utf-8"))
    _, (_, *bases) = read_with_bases(path, lambda name: path_of(name, FOLDERS[kind]))
    assert bool(bases) == ("base" in own)
    if bases:
        del own["base"]
        base, _ = read_with_bases(bases[0], lambda name: path_of(name, FOLDERS[kind]))
        whole = merged(base, own)
        assert [leaf for leaf in leaves(own) if merged(base, without(own, leaf)) == whole] == []


def test_what_begins_with_an_underscore_is_no_recipe_but_a_base_of_some() -> None:
    shared = [(kind, path) for kind, path in FILES if path.name.startswith("_")]
    assert len(shared) > 10
    for kind, folder in FOLDERS.items():
        assert names_in(folder)
        assert not [name for name in names_in(folder) if "_" in (name.split("/")[-1][0], name[0])], kind
    for kind, path in shared:
        users = [other for _, other in FILES if other.parent == path.parent and f'"{path.name}"' in other.read_text()]
        assert users, path
        with pytest.raises(RecipeError, match="is missing|has no field 'name'"):
            (load_recipe if kind == "run" else load_active_recipe)(str(path))
    with pytest.raises(RecipeError, match="there is no recipe 'adult/_base'"):
        load_recipe("adult/_base")


@pytest.mark.parametrize("name", [p.stem for p in sorted(STUDY.glob("*.toml")) if not p.name.startswith("_")])
def test_the_recipes_of_the_study_resolve(name: str) -> None:
    recipe = load_active_recipe(str(STUDY / f"{name}.toml"))
    assert recipe.selector == "dre"
    assert recipe.measure.epsilon == recipe.attack.epsilon


def test_fields_are_merged_and_another_name_replaces() -> None:
    base = {"seed": 1, "method": {"name": "erm", "training": {"steps": 3, "optimizer": {"name": "sgd", "momentum": 1}}}}
    assert merged(base, {}) == base
    assert merged(base, {"seed": 2}) == {**base, "seed": 2}
    assert merged(base, {"method": {"training": {"steps": 4}}})["method"]["training"] == {
        "steps": 4,
        "optimizer": {"name": "sgd", "momentum": 1},
    }
    adam = {"method": {"training": {"optimizer": {"name": "adam"}}}}
    assert merged(base, adam)["method"]["training"] == {"steps": 3, "optimizer": {"name": "adam"}}
    assert merged(base, {"method": {"name": "jtt"}}) == {"seed": 1, "method": {"name": "jtt"}}
    assert merged(base, {"method": {"name": "erm"}}) == base
    assert merged({"scores": [{"name": "lhd"}]}, {"scores": []}) == {"scores": []}  # a list is one value
    assert base["method"]["training"]["steps"] == 3  # nothing is changed in place


TABLES = st.recursive(
    st.integers() | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from(["a", "b", "name"]), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from("abc"), TABLES), st.dictionaries(st.sampled_from("abc"), TABLES))
def test_what_a_recipe_says_holds(base: dict[str, Any], own: dict[str, Any]) -> None:
    whole = merged(base, own)
    assert set(whole) == set(base) | set(own)
    assert merged(whole, own) == whole
    assert merged(base, base) == base
    for leaf in leaves(own):
        found: Any = whole
        wanted: Any = own
        for key in leaf:
            found, wanted = found[key], wanted[key]
        assert found == wanted


def test_a_base_is_found_beside_the_file_and_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "theirs.toml").write_text(WHOLE)
    (tmp_path / "mine.toml").write_text('base = "in/theirs.toml"\nseed = 4\nmodel = {name = "logistic"}\n')
    monkeypatch.chdir("/")
    recipe = load_recipe(str(tmp_path / "mine.toml"), ["train_floor=0.1"])
    assert (recipe.seed, recipe.model.name, recipe.method.name, recipe.train_floor) == (4, "logistic", "erm", 0.1)
    (tmp_path / "mine.toml").write_text('base = "coloured_digits/irmv1"\nmethod = {penalty = {weight = 7}}\n')
    recipe, theirs = load_recipe(str(tmp_path / "mine.toml")), load_recipe("coloured_digits/irmv1")
    assert recipe.method.penalty.weight == 7
    assert recipe.method.penalty.at == theirs.method.penalty.at
    assert recipe.data == theirs.data
    (tmp_path / "mine.toml").write_text('base = "adult/_base"\nmethod = {name = "erm"}\n')
    assert load_recipe(str(tmp_path / "mine.toml")).data == load_recipe("adult/erm").data
    (tmp_path / "mine.toml").write_text('base = "digits"\nselector = "conf"\n')
    assert load_active_recipe(str(tmp_path / "mine.toml")).data == load_active_recipe("digits").data


def test_a_run_keeps_the_complete_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('base = "theirs.toml"\nmethod = {training = {steps = 2}}\n')
    (tmp_path / "theirs.toml").write_text(WHOLE)
    assert main(["run", str(tmp_path / "mine.toml"), "--out", str(tmp_path / "out")]) == 0
    recipe = load_recipe(str(tmp_path / "mine.toml"))
    (tmp_path / "theirs.toml").unlink()
    done = run_of(tmp_path / "out" / "seed0")
    assert done.recipe == recipe
    assert done.recipe.method.training.steps == 2


def run_of(place: Path) -> Any:
    from steelyard.experiments import read_run

    return read_run(place)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base = 3", r"mine\.toml: base must be a recipe's name, or the path of a \.toml file.*got 3"),
        ('base = ""', r"mine\.toml: base: there is no recipe ''"),
        ('base = "coloured_digits/em"', r"mine\.toml: base: there is no recipe.*did you mean 'coloured_digits/erm'"),
        ('base = "digits"', r"mine\.toml: base: 'digits' is a recipe for another command"),
        ('base = "none.toml"', r"none\.toml cannot be read as a recipe"),
        ('base = "mine.toml"', r"mine\.toml: base leads in a circle: .*mine\.toml -> .*mine\.toml"),
        ('base = "./mine.toml"', "base leads in a circle"),
        ('base = "to_mine.toml"', "base leads in a circle: .*mine.* -> .*to_mine.* -> .*mine"),
        ('base = "../mine.toml"', r"mine\.toml: base must be .*which leads out of it"),
        ('base = "in/../../x.toml"', "which leads out of it"),
        ('base = "/etc/x.toml"', "which leads out of it"),
        (r'base = "..\\x.toml"', "which leads out of it"),
        (r'base = "C:x.toml"', "which leads out of it"),
        ('base = "a\\u0000.toml"', r"mine\.toml: base = .*cannot be read|cannot be read as a recipe"),
        ('base = "link.toml"', r"mine\.toml: base = 'link\.toml' cannot be read: .*symbolic link"),
        ('base = "folder/theirs.toml"', "cannot be read: .*symbolic link"),
        ('base = "pipe.toml"', r"pipe\.toml cannot be read as a recipe: .*FIFO"),
        ('base = "folder.toml"', r"folder\.toml cannot be read as a recipe"),
        ('base = "broken.toml"', r"broken\.toml cannot be read as a recipe"),
        ('base = "theirs.toml"\nmodel = {hiden = [3]}', r"mine\.toml on .*theirs\.toml: unknown field 'model\.hiden'"),
        ('base = "wrong.toml"', r"mine\.toml on .*wrong\.toml: seed must be a whole number"),
        ('base = "theirs.toml"\nmodel = 3', r"mine\.toml on .*: model must be a table"),
    ],
)
def test_what_is_refused_names_the_file_and_the_field(text: str, words: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "theirs.toml").write_text(WHOLE)
    (place / "wrong.toml").write_text(f'{WHOLE}seed = "x"\n')
    (place / "broken.toml").write_text("base = ")
    (place / "to_mine.toml").write_text('base = "mine.toml"\n')
    (place / "link.toml").symlink_to(place / "theirs.toml")
    (place / "folder").symlink_to(place, target_is_directory=True)
    (place / "folder.toml").mkdir()
    os.mkfifo(place / "pipe.toml")
    (place / "mine.toml").write_text(f"{text}\n")
    with pytest.raises(RecipeError, match=words):
        load_recipe(str(place / "mine.toml"))


def test_a_chain_may_be_long_but_not_endless(tmp_path: Path) -> None:
    (tmp_path / "0.toml").write_text(WHOLE)
    for number in range(1, DEEPEST + 1):
        (tmp_path / f"{number}.toml").write_text(f'base = "{number - 1}.toml"\nseed = {number}\n')
    assert load_recipe(str(tmp_path / f"{DEEPEST - 1}.toml")).seed == DEEPEST - 1
    with pytest.raises(RecipeError, match=rf"base: .* is made of more than {DEEPEST} files; shorten the chain"):
        load_recipe(str(tmp_path / f"{DEEPEST}.toml"))


def test_tables_nested_without_end(tmp_path: Path) -> None:
    deep = ".".join("a" * 5_000)
    for name in ("theirs", "mine"):
        (tmp_path / f"{name}.toml").write_text(('base = "theirs.toml"\n' if name == "mine" else "") + f"{deep} = 1\n")
    with pytest.raises(RecipeError, match="nested too deeply|cannot be read|unknown field"):
        load_recipe(str(tmp_path / "mine.toml"))


def test_a_base_is_not_set_on_the_command_line() -> None:
    with pytest.raises(RecipeError, match="unknown field 'base'"):
        load_recipe("coloured_digits/erm", ['base="coloured_digits/irmv1"'])


@pytest.mark.parametrize("name", ["coloured_digits/maple_prior", "celeba/jtt", "cifar10_small", "four_moons"])
def test_a_recipe_shown_is_a_recipe(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--show", name]) == 0
    path = tmp_path / "shown.toml"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    load = load_recipe if name in recipe_names() else load_active_recipe
    assert load(str(path)) == load(name)
    assert "base" not in tomllib.loads(path.read_text())


def test_a_file_of_ones_own_is_shown_and_an_unknown_name_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text('base = "coloured_digits/erm"\nseed = 9\n')
    assert main(["recipes", "--show", "mine.toml"]) == 0
    assert tomllib.loads(capsys.readouterr().out) == {
        key: value for key, value in plain(load_recipe("coloured_digits/erm", seed=9)).items() if value is not None
    }
    assert main(["recipes", "--show", "coloured_digits/mapel"]) == 2
    assert "did you mean 'coloured_digits/maple'" in capsys.readouterr().err
