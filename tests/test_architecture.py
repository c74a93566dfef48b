"""The house's law: imports point down the floors (ARCHITECTURE, "The map")."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import steelyard

ROOT = Path(steelyard.__file__).parent
ORDER = (  # from the ground up; rooms of one floor do not know each other
    ("bilevel", "selectors", "theory"),
    ("reweight",),
    ("__init__", "estimators", "integrations"),  # the front door to the rooms above; scikit-learn's form; trainers
    ("experiments.errors",),
    ("experiments.models",),
    ("experiments.data",),
    ("experiments.training",),
    ("experiments.priors",),
    ("experiments.methods",),
    ("experiments.runs",),
    ("experiments.compare",),
    ("experiments.report", "experiments.active", "experiments.tuning"),
    ("experiments.weigh",),
    ("experiments",),  # its front door, which shows what stands in its rooms
    ("cli",),
    ("__main__",),
)
FLOORS = {name: floor for floor, names in enumerate(ORDER) for name in names}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from steelyard import x` may name a room.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(parts: tuple[str, ...]) -> str | None:
    """The room of a module, which a path below the package names; None: it is in none, as `checkpoint` is."""
    if parts[:1] == ("experiments",) and len(parts) > 1:
        inner = ".".join(parts[:2])
        return inner if inner in FLOORS or parts[1] != "__init__" else "experiments"
    return parts[0] if parts and parts[0] in FLOORS else None


def asked(dotted: str) -> str | None:
    """The room that an import asks; a name that `experiments` itself shows is of its front door."""
    first, *parts = dotted.split(".")
    found = room(tuple(parts)) if first == "steelyard" else None
    return "experiments" if found is not None and found.startswith("experiments") and found not in FLOORS else found


def violations(root: Path) -> list[str]:
    found = []
    for path in root.rglob("*.py"):
        own = room(path.relative_to(root).with_suffix("").parts)
        for name in imports(path):
            other = asked(name)
            if other is None or other == own:
                continue
            if own not in FLOORS or FLOORS[own] <= FLOORS[other]:
                found.append(f"{path.relative_to(root)} imports {name}")
    return found


def test_imports_point_down() -> None:
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("bilevel/bad.py", "from steelyard.reweight import Mask"),
        ("checkpoint.py", "import steelyard.theory"),
        ("__init__.py", "from steelyard.experiments import load_recipe"),
        ("_support/_check.py", "from steelyard import bilevel"),
        ("selectors/bad.py", "from steelyard.theory import complexity"),
        ("experiments/data/bad.py", "from steelyard.experiments.training.problem import Problem"),
        ("experiments/methods/bad.py", "from steelyard.experiments import runs"),
        ("experiments/training/bad.py", "from steelyard.experiments import load_recipe"),
        ("experiments/report/bad.py", "import steelyard.experiments.active.run"),
        ("experiments/loose.py", "from steelyard.bilevel import Batch"),
        ("experiments/__init__.py", "import steelyard.cli"),
    ],
)
def test_the_check_can_fail(path: str, line: str, tmp_path: Path) -> None:
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(f"{line}\n")
    assert len(violations(tmp_path)) == 1


def test_what_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "experiments" / "runs").mkdir(parents=True)
    (tmp_path / "reweight").mkdir()
    (tmp_path / "reweight" / "good.py").write_text("from steelyard.selectors import lhd\n")
    (tmp_path / "experiments" / "runs" / "good.py").write_text("from steelyard.experiments.methods import ERM\n")
    (tmp_path / "experiments" / "__init__.py").write_text("from steelyard.experiments.runs.run import Run\n")
    assert violations(tmp_path) == []


def test_every_room_is_there_and_no_other() -> None:
    """What stands beside the rooms belongs to all of them; in `experiments` nothing does but its errors."""
    rooms = set(FLOORS) - {"__init__", "__main__"}
    assert {name for name in rooms if (ROOT / name.replace(".", "/")).is_dir()} == rooms - {
        "experiments.errors",
        "estimators",
    }
    inside = {path.stem for path in (ROOT / "experiments").iterdir() if not path.name.startswith("__")}
    assert inside == {name.split(".")[1] for name in rooms if "." in name} | {"recipes"}
    beside = {path.stem for path in ROOT.iterdir() if not path.name.startswith("__")} - rooms
    assert beside == {"_support", "checkpoint", "distributed", "journal", "py"}  # py.typed
