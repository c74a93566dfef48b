"""What pyproject.toml asks for is what the code imports: the base, the extra `experiments`, and no more."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from steelyard._support._toml import tomllib
from tests.support.places import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAMES = {"sklearn": "scikit-learn", "PIL": "pillow", "art": "adversarial-robustness-toolbox"}
NOT_INSTALLED = {"steelyard", "tests", "tomllib", "_typeshed"}  # ours; Python's from 3.11 on; a type checker's
ROOMS = ("bilevel", "reweight", "selectors", "theory", "checkpoint", "distributed")


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=;~! ]", one)[0] for one in requirements}


BASE = names(PROJECT["dependencies"])
TRAINERS = {"transformers", "lightning"}  # steelyard.integrations
EXTRAS = {extra: names(asked) for extra, asked in PROJECT["optional-dependencies"].items()}


def imported(paths: Iterator[Path]) -> set[str]:
    """The distributions that these files import, wherever in the file."""
    found = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found |= {module.partition(".")[0] for module in modules}
    return {NAMES.get(name, name) for name in found - set(sys.stdlib_module_names) - NOT_INSTALLED}


def test_the_base_is_what_the_project_is_built_on() -> None:
    assert {"torch", "torchvision", "torchopt", "higher", "numpy", "safetensors", "jaxtyping"} == BASE


def test_the_package_imports_what_is_asked_for_and_all_of_it() -> None:
    found = imported((ROOT / "steelyard").rglob("*.py"))
    found |= {"torchvision"}  # by its name: see _support/_torchvision.py
    assert found - BASE - EXTRAS["experiments"] - EXTRAS["attacks"] - TRAINERS == set()
    assert (BASE | EXTRAS["experiments"]) - found == set()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_no_extra_but_pandas_for_a_table(room: str) -> None:
    place = ROOT / "steelyard" / room
    paths = place.rglob("*.py") if place.is_dir() else iter([place.with_suffix(".py")])
    assert imported(paths) - BASE <= ({"pandas"} if room == "reweight" else set())


def test_dev_bench_and_attacks_include_the_experiments() -> None:
    asked = PROJECT["optional-dependencies"]
    assert all("steelyard[experiments]" in asked[extra] for extra in ("dev", "bench", "attacks"))


def test_the_version_is_said_once_more_in_the_package() -> None:
    import steelyard

    assert PROJECT["version"] == steelyard.__version__
    assert f"## {steelyard.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
