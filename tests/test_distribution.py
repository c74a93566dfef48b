"""The wheel and the sdist: every file of the tree is in them, and the wheel works where there is no tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import steelyard
from tests.support.places import ROOT

_PATIENCE = 600  # seconds until a test gives up on a process that takes some ten on a free machine

_BUILD = """
import sys
from setuptools import build_meta as backend
getattr(backend, f"build_{sys.argv[1]}")(sys.argv[2])
"""


def _tracked() -> list[str]:
    """The files of the tree, hidden ones aside; those that git tracks where there is a repository."""
    if (ROOT / ".git").exists():
        said = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        found = [name for name in said.split("\0") if name and (ROOT / name).is_file()]
    else:  # an unpacked sdist
        found = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file()]
        found = [name for name in found if not _made(name)]
    return sorted(name for name in found if not any(part.startswith(".") for part in Path(name).parts))


def _made(name: str) -> bool:
    """Whether a file is not of the tree but of what was built or run in it."""
    first, *_ = parts = Path(name).parts
    return first in ("PKG-INFO", "setup.cfg", "build", "dist", "runs", "steelyard.egg-info") or "__pycache__" in parts


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    return _tracked()


@pytest.fixture(scope="module")
def distributions(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An sdist of a copy of the tree, and a wheel of that sdist, as `python -m build` makes them; offline."""
    place = tmp_path_factory.mktemp("built")
    for name in tracked:
        (place / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place / "tree" / name)
    sdist = _build("sdist", place / "tree", place)
    with tarfile.open(sdist) as archive:
        archive.extractall(place, filter="data")
    return sdist, _build("wheel", place / sdist.name.removesuffix(".tar.gz"), place)


def _build(kind: str, tree: Path, place: Path) -> Path:
    command = [sys.executable, "-W", "ignore", "-c", _BUILD, kind, str(place)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=_PATIENCE)
    assert done.returncode == 0, done.stderr
    (built,) = place.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return built


def test_the_sdist_has_every_file_of_the_tree(distributions: tuple[Path, Path], tracked: list[str]) -> None:
    """All tests too, with what they read."""
    with tarfile.open(distributions[0]) as archive:
        names = [name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()]
    assert sorted(name for name in names if not _made(name)) == tracked
    assert "tests/test_distribution.py" in names


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(
    distributions: tuple[Path, Path], tracked: list[str]
) -> None:
    with zipfile.ZipFile(distributions[1]) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    assert sorted(name for name in names if ".dist-info/" not in name) == [
        name for name in tracked if name.startswith("steelyard/")
    ]


@pytest.fixture(scope="module")
def installed(distributions: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel in it, as pip installs it."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    command += ["--disable-pip-version-check", "--target", str(folder), str(distributions[1])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE)
    assert done.returncode == 0, done.stderr
    return folder


def _run(installed: Path, place: Path, *arguments: str) -> str:
    """What Python prints in a folder of its own, with the installed wheel before anything else."""
    settings = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=place, env=settings, capture_output=True, text=True, timeout=_PATIENCE)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


_RECIPES = """
import sys
from pathlib import Path
import steelyard
from steelyard.cli import main
from steelyard.experiments.active.recipe import active_recipe_names, load_active_recipe
from steelyard.experiments.runs.recipe import load_recipe, recipe_names

assert Path(steelyard.__file__).is_relative_to(sys.argv[1]), steelyard.__file__
print(len([load_recipe(name) for name in recipe_names()]), "recipes")
print(len([load_active_recipe(name) for name in active_recipe_names()]), "active recipes")
short = ["--set", "method.training.steps=4", "--set", "model.hidden=[8]"]
assert main(["run", "coloured_digits/erm", *short, "--seeds", "0", "--out", "runs"]) == 0
assert main(["report", "runs/seed0", "--out", "report.html"]) == 0
assert main(["compare", "runs/seed0", "--out", "compared"]) == 0
"""


def test_recipes_and_the_report_from_the_wheel(installed: Path, tracked: list[str], tmp_path: Path) -> None:
    said = _run(installed, tmp_path, "-c", _RECIPES, str(installed)).splitlines()
    recipes = [name for name in tracked if name.startswith("steelyard/") and "/recipes/" in name and "/_" not in name]
    active = [name for name in recipes if "/active/" in name]
    assert f"{len(recipes) - len(active)} recipes" in said
    assert f"{len(active)} active recipes" in said
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "compared" / "comparison.md").is_file()


@pytest.mark.slow
def test_the_demo_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    _run(installed, tmp_path, "-m", "steelyard", "demo", "--seeds", "0")
    assert (tmp_path / "runs" / "demo" / "report.html").is_file()


FOUR = ("torch", "numpy", "safetensors", "jaxtyping")


def _needed(names: tuple[str, ...]) -> dict[str, metadata.Distribution]:
    """Distributions of these names that are installed here, and of what they need themselves, extras aside."""
    found: dict[str, metadata.Distribution] = {}
    left = list(names)
    while left:
        name = canonicalize_name(left.pop())
        if name in found:
            continue
        found[name] = metadata.distribution(name)
        for needed in map(Requirement, found[name].requires or []):
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                left.append(needed.name)
    return found


def _top_level(distribution: metadata.Distribution) -> Iterator[Path]:
    """The folders and files that a distribution has laid into site-packages."""
    for name in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
        yield Path(str(distribution.locate_file(name)))


@pytest.fixture(scope="module")
def bare(distributions: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of a venv with the wheel in it, torch, numpy, safetensors, jaxtyping and what these need: no more.

    The four are links to those of the environment that runs the tests, so that nothing is downloaded.
    """
    place = tmp_path_factory.mktemp("bare")
    venv.create(place, symlinks=True)
    python = place / "bin" / "python"
    asked = [str(python), "-I", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())
    for entry in (entry for one in _needed(FOUR).values() for entry in _top_level(one)):
        if not (site / entry.name).exists():  # a namespace may be of several
            (site / entry.name).symlink_to(entry)
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-compile", "--disable-pip-version-check", str(distributions[1])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE)
    assert done.returncode == 0, done.stderr
    return place / "bin"


def test_the_rooms_work_beside_torch_numpy_safetensors_and_jaxtyping(bare: Path, tmp_path: Path) -> None:
    command = [str(bare / "python"), "-I", str(ROOT / "tests" / "support" / "bare.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=_PATIENCE)
    assert done.returncode == 0, done.stderr
    works = [line.split()[0] for line in done.stdout.splitlines() if line.endswith(" works")]
    assert works == ["bilevel", "reweight", "select", "bound", "ranks", "commands", "experiments"]
    said = done.stderr.splitlines()
    assert len(said) == 5
    assert said[0].startswith("steelyard: error: losses.parquet, a Parquet file (.npy needs no extra), needs pandas")
    assert said[1].startswith("steelyard: error: steelyard run needs tyro, which is not installed")
    assert all(line.endswith(": pip install 'steelyard[experiments]'") for line in said)


def test_the_command_without_the_extra(bare: Path, tmp_path: Path) -> None:
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(bare / "steelyard"), *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=_PATIENCE, check=False
        )

    version, helped, run = call("--version"), call("--help"), call("run", "coloured_digits/erm")
    assert (version.returncode, version.stdout) == (0, f"steelyard {steelyard.__version__}\n")
    assert helped.returncode == 0
    assert "demo" in helped.stdout
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert run.stderr.endswith("needs tyro, which is not installed: pip install 'steelyard[experiments]'\n")
