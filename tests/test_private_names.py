"""Tests ask what users ask: a private name stands in a test only where the insides are its subject, and is listed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.places import ROOT

PACKAGES = ("steelyard", "studies")
LISTED = {
    "bilevel/test_corners.py": {"_RULES": "one rule less, as on a GPU, whose kernel is another operator"},
    "bilevel/test_float64.py": {"_ROUGH": "off, to see what it is good for"},
    "bilevel/test_float64_values.py": {
        "_ROUGH": "none, so that a small net's pass in float32 is too rough, as a ResNet's"
    },
    "bilevel/test_near_float64.py": {
        "_ROUGH": "none, so that a small net's pass in float32 is too rough, as a ResNet's"
    },
    "bilevel/test_recorder.py": {
        "_accumulation": "what a recorder holds of the step that is under way",
        "_window": "the window's own storage, which a trajectory copies",
    },
    "bilevel/test_rough_windows.py": {"_ROUGH": "as large as it gets, to see what it is good for"},
    "cli/test_bounds.py": {"_WIDE": "small, so that a small class counts as wide"},
    "experiments/runs/test_resume.py": {"_write_outcome": "death between the fit and its outcome"},
    "experiments/weigh/conftest.py": {
        "_FEWEST_STEPS": "short trainings, which no option of the command asks for",
        "_MAPLE_STEPS": "the same of MAPLE",
    },
    "reweight/test_humps.py": {"_log_tail": "tails of one to hundreds of trials, of which a valley shows its deepest"},
    "reweight/test_inputs.py": {"_CATEGORIES": "torch's limit of 2^24, small"},
    "reweight/test_online.py": {
        "_loss_of": "a forward pass of its own, to compare with the one that serves twice",
        "_losses": "the graph of that pass is let go",
    },
    "reweight/test_priors.py": {"_under_budget": "log-odds a few digits apart, which no probabilities have"},
    "reweight/test_projections.py": {
        "_CHUNK": "short chunks of a short vector",
        "_LONG": "every vector is a long one, or none is",
        "_SAMPLE": "a small sample of a short vector",
        "_chunks": "passes are counted",
        "_settle": "rounds are counted",
        "_threshold": "to twelve digits, which the projection's float32 does not show",
        "_whole": "passes are counted",
    },
    "selectors/test_blocks.py": {"_BLOCK": "small blocks of a small pool"},
    "selectors/test_committee.py": {"_ROWS": "small blocks of a small pool"},
    "selectors/test_coreset.py": {"_CANDIDATES": "few candidates of a small pool"},
    "selectors/test_information.py": {
        "_BLOCK": "small blocks of a small pool",
        "_drawn": "the estimate inside of BatchBALD is unbiased; the picks show its order alone",
        "_joint_entropy": "the same",
    },
    "selectors/test_points.py": {"_from_differences": "pairs that go the slow way are counted"},
    "selectors/test_seeding.py": {"_PROPOSALS": "few proposals of a small pool"},
    "selectors/test_subsets.py": {"_BLOCK": "small blocks of a small pool"},
    "selectors/test_valuation.py": {"_BLOCK": "small blocks of a small pool", "_ROWS": "the same"},
    "studies/test_data_cleaning.py": {"_GRID": "one of two settings diverges, as none of the study's own does"},
    "studies/test_doubly_robust.py": {"_STEPS": "a short study"},
    "test_files.py": {"_warn_of_no_lock": "it warns once a process: forgotten between tests"},
    "test_tutorials.py": {"_FEWEST_STEPS": "short trainings, which no option of the command asks for"},
    "theory/test_complexity.py": {"_SIGNS": "small blocks of signs", "_WIDE": "a small class counts as wide"},
    "theory/test_finite_class.py": {"_WIDE": "a small class counts as wide"},
}
"""The names that a file under tests/ may use, and why. The list only gets shorter: a name that is gone is a failure."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def defined(path: Path) -> Iterator[str]:
    """The private names that a file gives to functions, classes, constants and attributes; of modules, none."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr


OURS = {
    name
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    for name in defined(path)
    if is_private(name)
}


def used(source: str) -> set[str]:
    """The private names of ours that a test imports, reads as an attribute, or names in a string to patch it."""
    tree = ast.parse(source)
    own = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_of_itself(node)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and _is_of_ours(node.module or ""):
            found |= {alias.name for alias in node.names if alias.name in OURS}
        elif isinstance(node, ast.Attribute) and not _is_of_itself(node):
            found |= {node.attr} & OURS
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("setattr", "delattr"):
            found |= {one.value for one in node.args if isinstance(one, ast.Constant)} & OURS
    return found - own


def _is_of_ours(module: str) -> bool:
    """Whether it is a module whose names are looked at; what `_support` holds are modules."""
    return module.split(".")[0] in PACKAGES and module != "steelyard._support"


def _is_of_itself(node: ast.Attribute) -> bool:
    """Whether it is a test's own class that reads its own attribute, or a name of torch's."""
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls", "torch")


TESTS = sorted((ROOT / "tests").rglob("*.py"))


@pytest.mark.parametrize("room", sorted({path.relative_to(ROOT / "tests").parts[0] for path in TESTS}))
def test_private_names_are_listed_with_a_reason(room: str) -> None:
    folder = ROOT / "tests"
    found = {
        path.relative_to(folder).as_posix(): used(path.read_text(encoding="utf-8"))
        for path in TESTS
        if path.relative_to(folder).parts[0] == room
    }
    listed = {name: set(names) for name, names in LISTED.items() if name.split("/")[0] == room}
    assert {name: names for name, names in found.items() if names} == listed


@pytest.mark.parametrize(
    "source",
    [
        "from steelyard.reweight.humps import _log_tail",
        "humps._log_tail(k, n, p)",
        "monkeypatch.setattr(humps, '_log_tail', None)",
        "monkeypatch.delattr(humps, '_log_tail')",
        "class Own:\n    def use(self, humps):\n        return humps._log_tail",
    ],
)
def test_the_check_can_fail(source: str) -> None:
    assert used(source) == {"_log_tail"}


def test_what_is_allowed() -> None:
    assert used("from steelyard._support._state import encode\nparameter._version\nfields._replace(a=1)") == set()
    assert used("class Own:\n    def step(self):\n        self._log_tail = 1\n        return self._log_tail") == set()
