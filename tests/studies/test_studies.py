"""What all studies have, and that the package knows none of them."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import steelyard
from steelyard.cli.moved import moved_to
from tests.support.places import ROOT

STUDIES = sorted(path.parent.name for path in (ROOT / "studies").glob("*/__main__.py"))


def importers(folder: Path) -> list[str]:
    """The files below `folder` that import a study."""
    found = []
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "studies" for name in names):
                found.append(path.name)
    return found


def test_the_package_imports_no_study(tmp_path: Path) -> None:
    assert importers(Path(steelyard.__file__).parent) == []
    for number, line in enumerate(("import studies.priors", "from studies import robust", "import os, studies")):
        (tmp_path / f"{number}.py").write_text(f"def f():\n    {line}\n")
    assert sorted(importers(tmp_path)) == ["0.py", "1.py", "2.py"]


def test_the_command_line_loads_no_study() -> None:
    program = "import json, sys, steelyard.cli; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not [name for name in json.loads(done.stdout) if name.split(".")[0] == "studies"]


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_has_its_page_and_its_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "studies" / name / "README.md").read_text(encoding="utf-8")
    assert f"python -m studies.{name}" in page
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(f"studies.{name}.__main__").main(["--help"])
    assert caught.value.code == 0
    assert f"python -m studies.{name}" in capsys.readouterr().out
    assert f"[{name}]({name}/README.md)" in (ROOT / "studies" / "README.md").read_text(encoding="utf-8")
    linked = [part.split(")")[0] for part in page.split("](")[1:]]
    assert linked
    assert all((ROOT / "studies" / name / target).exists() for target in linked)


@pytest.mark.parametrize("command", ["priors", "robust", "disagreement"])
def test_old_commands_name_a_study_that_is_there(command: str) -> None:
    said = moved_to([command, "--seeds", "0"])
    assert said is not None
    assert said.removeprefix("python -m studies.") in STUDIES


def test_commands_that_stayed_are_not_moved() -> None:
    assert all(moved_to(given) is None for given in ([], ["run"], ["bounds", "--losses", "x.npy"], ["active"]))
