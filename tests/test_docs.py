"""The documents hold what they promise: links lead somewhere, figures come from `results/`, nothing is left open."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.places import ROOT

DOCUMENTS = [
    "README.md",
    "results/README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))),
]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_named_results_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    linked = [target for target in re.findall(r"\]\(([^)#\s]+)\)", text) if "://" not in target]
    named = re.findall(r"`(results/[\w/.]+)`", text)
    missing = [target for target in linked if not (ROOT / name).parent.joinpath(target).exists()]
    assert missing + [target for target in named if not (ROOT / target).exists()] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_placeholder_is_left(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert re.findall(r"^(?:TODO|TBD|FIXME|[A-Z_]{5,})$", text, re.M) == []


@pytest.mark.parametrize("name", ["README.md", "results/README.md"])
def test_every_spread_is_in_a_summary(name: str) -> None:
    known = set()
    for path in (ROOT / "results").rglob("summary.json"):
        for row in json.loads(path.read_text(encoding="utf-8")):
            if row["mean"] is not None and row["std"] is not None:
                known.add((f"{100 * row['mean']:.1f}", f"{100 * row['std']:.1f}"))
    text = (ROOT / name).read_text(encoding="utf-8")
    # Lines that quote other people's figures say so, and are not ours to remake.
    ours = [line for line in text.splitlines() if "as reported" not in line]
    printed = re.findall(r"\*{0,2}(\d+\.\d)\*{0,2} ± (\d+\.\d)", "\n".join(ours))
    assert len(printed) >= 10
    assert [pair for pair in printed if pair not in known] == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "results").rglob("summary.json")), ids=lambda p: p.parent.relative_to(ROOT).as_posix()
)
def test_summaries_have_their_columns(path: Path) -> None:
    rows = json.loads(path.read_text(encoding="utf-8"))
    columns = {"recipe", "dataset", "method", "metric", "selection", "mean", "std", "seeds", "command"}
    assert rows
    assert all(set(row) == columns for row in rows)
    assert all(isinstance(row["seeds"], list) for row in rows)


def test_the_map_names_what_is_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:[\w]+/)*[\w]+\.(?:py|toml))`", text)
    tests = re.findall(r"`(test_\w+)`", text)
    files = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.*") if ".venv" not in path.parts]
    assert [one for one in named if not any(f"/{file}".endswith("/" + one) for file in files)] == []
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert [one for one in tests if f"def {one}(" not in sources] == []
    assert len(named) > 20
