"""The house's law: imports point down the floors (DESIGN, "The house")."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import steelyard

ROOT = Path(steelyard.__file__).parent
FLOORS = {
    "bilevel": 1,
    "selectors": 1,
    "theory": 1,
    "reweight": 2,
    "__init__": 3,  # the front door, to the rooms above
    "experiments": 3,
    "cli": 4,
    "__main__": 5,
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from steelyard import x` may name a room.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(dotted: str) -> str | None:
    parts = dotted.split(".")
    return parts[1] if parts[0] == "steelyard" and len(parts) > 1 and parts[1] in FLOORS else None


def violations(root: Path) -> list[str]:
    found = []
    for path in root.rglob("*.py"):
        own = path.relative_to(root).with_suffix("").parts[0]
        for name in imports(path):
            other = room(name)
            if other is None or other == own:
                continue
            if own not in FLOORS or FLOORS[own] <= FLOORS[other]:
                found.append(f"{path.relative_to(root)} imports {name}")
    return found


def test_imports_point_down() -> None:
    assert violations(ROOT) == []


def test_the_check_can_fail(tmp_path: Path) -> None:
    (tmp_path / "bilevel").mkdir()
    (tmp_path / "bilevel" / "bad.py").write_text("from steelyard.reweight import Mask\n")
    (tmp_path / "_shared.py").write_text("import steelyard.theory\n")
    assert len(violations(tmp_path)) == 2


def test_every_room_is_there() -> None:
    assert {name for name in FLOORS if (ROOT / name).is_dir()} == {
        "bilevel",
        "selectors",
        "theory",
        "reweight",
        "experiments",
        "cli",
    }
