"""`from steelyard import Maple`: the front door leads to the rooms, and opens them when asked."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import steelyard

ROOMS = ("bilevel", "reweight", "selectors", "theory", "checkpoint", "distributed")
NAMES = [name for name in steelyard.__all__ if name not in ROOMS]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_its_rooms_own(name: str) -> None:
    found = [
        module
        for module in map(importlib.import_module, (f"steelyard.{room}" for room in (*ROOMS, "_support._report")))
        if name in module.__all__
    ]
    assert len(found) == 1
    assert getattr(steelyard, name) is getattr(found[0], name)


def test_rooms_are_attributes() -> None:
    assert all(inspect.ismodule(getattr(steelyard, room)) for room in ROOMS)


def test_what_type_checkers_read_is_what_there_is() -> None:
    tree = ast.parse(Path(steelyard.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = [alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(typed) == sorted(steelyard.__all__)
    assert set(steelyard.__all__) <= set(dir(steelyard))


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'steelyard' has no attribute 'Mapel'"):
        steelyard.Mapel  # noqa: B018
    with pytest.raises(ImportError, match="Mapel"):
        exec("from steelyard import Mapel")


_LAZY = """
import sys
import steelyard
opened = lambda: sorted(name for name in sys.modules if name.count(".") == 1 and name.startswith("steelyard."))
assert opened() == [] and "torch" not in sys.modules, opened()
from steelyard import theory
assert "steelyard.bilevel" not in sys.modules and "steelyard.reweight" not in sys.modules
from steelyard import Maple
assert steelyard.reweight.Maple is Maple and steelyard.Maple is Maple
assert "steelyard.experiments" not in sys.modules and "steelyard.selectors" not in sys.modules
"""


def test_a_room_is_imported_when_it_is_asked_for() -> None:
    done = subprocess.run([sys.executable, "-c", _LAZY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
