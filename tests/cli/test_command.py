"""The names of the commands, and what may be imported to say them."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from steelyard.checkpoint import Journal
from steelyard.cli.command import COMMANDS, exit_status, main

TUNED = [name for name in COMMANDS if name != "bounds"]


@pytest.mark.parametrize("name", TUNED)
def test_the_list_of_commands_says_what_each_says_of_itself(name: str) -> None:
    home, summary = COMMANDS[name]
    module, function = home.split(":")
    said = inspect.getdoc(getattr(importlib.import_module(f"steelyard.cli.{module}"), function))
    assert said is not None
    assert said.splitlines()[0] == summary


def test_help_of_bounds_begins_as_the_list_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["bounds", "--help"])
    assert COMMANDS["bounds"][1] in capsys.readouterr().out.splitlines()


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


_SAID = {
    "photos --backbone nets:build": "--backbone nets:build runs code of yours; say --allow-code, too",
    "photos": "--backbone is missing: the network that makes features of the images",
    "t.csv": "--target is missing",
    "t.csv --target y --backbone resnet18": "--backbone resnet18 is for images",
    "nowhere": "there is no file or folder nowhere",
    "t.csv --target y --epochs 0": "--epochs must be at least 1, got 0",
}
_REFUSED = """
import shlex, sys
from steelyard.cli import main
for words in sys.argv[1:]:
    assert main(shlex.split(words)) == 2
print("imported:", [name for name in ("torch", "pandas", "matplotlib") if name in sys.modules])
"""


def test_what_is_wrong_with_an_option_does_not_wait_for_torch(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    calls = [f"{command} {words}" for command in ("weigh", "suspects") for words in _SAID]
    done = subprocess.run([sys.executable, "-c", _REFUSED, *calls], capture_output=True, text=True, cwd=tmp_path)
    errors = done.stderr.splitlines()
    assert done.stdout == "imported: []\n"
    assert len(errors) == len(calls)
    for error, said in zip(errors, [*_SAID.values()] * 2, strict=True):
        assert said in error


def test_a_checkpoint_of_another_computation_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a study meets it that is resumed with other settings."""
    (tmp_path / "run.safetensors").write_bytes(b"no checkpoint")

    def work() -> None:
        with Journal(tmp_path / "run.safetensors").stage({}):
            pass

    assert exit_status(work, ["python", "-m", "studies.groups"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("steelyard: error: ")
    assert "run.safetensors" in said
