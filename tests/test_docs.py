"""The documents hold what they promise: links lead somewhere, figures come from `results/`, nothing is left open."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_named_results_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    linked = [target for target in re.findall(r"\]\(([^)#\s]+)\)", text) if "://" not in target]
    named = re.findall(r"`(results/[\w/.]+)`", text)
    missing = [target for target in (*linked, *named) if not (ROOT / target).exists()]
    assert missing == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_placeholder_is_left(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert re.findall(r"^(?:TODO|TBD|FIXME|[A-Z_]{5,})$", text, re.M) == []


def test_every_spread_in_the_readme_is_in_a_summary() -> None:
    known = set()
    for path in (ROOT / "results").rglob("summary.json"):
        for row in json.loads(path.read_text(encoding="utf-8")):
            if row["mean"] is not None and row["std"] is not None:
                known.add((f"{100 * row['mean']:.1f}", f"{100 * row['std']:.1f}"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    # Lines that quote other people's figures say so, and are not ours to remake.
    ours = [line for line in text.splitlines() if "as reported" not in line]
    printed = re.findall(r"\*{0,2}(\d+\.\d)\*{0,2} ± (\d+\.\d)", "\n".join(ours))
    assert len(printed) > 10
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
