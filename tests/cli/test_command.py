"""The names of the commands, and what may be imported to say them."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest

from steelyard.cli.command import COMMANDS

TUNED = [name for name in COMMANDS if name != "bounds"]


@pytest.mark.parametrize("name", TUNED)
def test_the_list_of_commands_says_what_each_says_of_itself(name: str) -> None:
    home, summary = COMMANDS[name]
    module, function = home.split(":")
    said = inspect.getdoc(getattr(importlib.import_module(f"steelyard.cli.{module}"), function))
    assert said is not None
    assert said.splitlines()[0] == summary


def test_help_of_bounds_begins_as_the_list_does() -> None:
    from steelyard.cli.bounds import _DESCRIPTION

    assert _DESCRIPTION.splitlines()[0] == COMMANDS["bounds"][1]


_IMPORTED = """
import sys
from contextlib import suppress
from steelyard.cli import main
with suppress(SystemExit):
    main(sys.argv[1:])
heavy = ("torch", "numpy", "pandas", "tyro", "rich", "matplotlib", "torchvision", "jaxtyping")
print("imported:", [name for name in heavy if name in sys.modules])
"""


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], [], ["rnu"]])
def test_help_and_version_import_neither_torch_nor_an_extra(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", _IMPORTED, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported: []"
