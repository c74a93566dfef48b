"""Plain English: no phrase of the list below stands in what people read; beside each is what to say instead."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.places import ROOT

SAY = {
    r"(go|goes|going|gone|went) on with": "resume, continue",
    r"in the place of": "instead of",
    r"anew": "again",
    r"the first process": "rank 0",
    r"(where|there|here)(of|upon|with)": "a new sentence",
    r"whence|whilst|albeit|heretofore|notwithstanding": "from which, while, although, so far, in spite of",
    r"utili[sz]e[sd]?|utili[sz]ing|leverag(e|es|ed|ing)": "use",
    r"in order to": "to",
    r"due to the fact that": "because",
    r"(blazing|lightning)[- ]fast|seamless(ly)?|state-of-the-art|cutting-edge": "a measured figure",
    r"(simply|obviously|of course)": "nothing: leave it out",
}
LISTED = re.compile("|".join(rf"(\b(?:{phrase})\b)" for phrase in SAY), re.IGNORECASE)
READ = sorted(
    path
    for folder in ("steelyard", "studies", "benchmarks", "examples", "docs", "results", "tests")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".md", ".j2", ".toml") and path != Path(__file__)
)


def listed(text: str) -> list[tuple[int, str]]:
    """Return the phrases of the list in `text`, each with its line, from 1; one that is broken over lines, too."""
    plain = re.sub(r"[\s#]+", " ", text)
    if not LISTED.search(plain):
        return []
    joined = re.sub(r"\n[ #]*", lambda gap: "\n" + " " * (len(gap[0]) - 1), text)
    pattern = re.compile(LISTED.pattern.replace(" ", r"\s+"), re.IGNORECASE)
    return [(joined.count("\n", 0, match.start()) + 1, match[0]) for match in pattern.finditer(joined)]


@pytest.mark.parametrize("folder", ["steelyard", "studies", "benchmarks", "examples", "docs", "results", "tests"])
def test_no_listed_phrase(folder: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {phrase!r}"
        for path in READ
        if path.relative_to(ROOT).parts[0] == folder
        for line, phrase in listed(path.read_text(encoding="utf-8"))
    ]
    assert wrong == []


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"])
def test_no_listed_phrase_at_the_root(name: str) -> None:
    assert listed((ROOT / name).read_text(encoding="utf-8")) == []


def test_the_list_is_found_across_lines_and_comments() -> None:
    assert listed("one\n    # a run is gone on\n    # with later") == [(2, "gone on\n      with")]
    assert listed("a plan that renews") == []
