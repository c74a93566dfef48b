"""The documents hold what they promise: links lead somewhere, figures come from `results/`, nothing is left open."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.modules import module_at
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
def test_an_inner_product_is_code_and_no_tag(name: str) -> None:
    """Outside of code, ``<u, g>`` is an HTML tag to a browser: it shows nothing."""
    text = (ROOT / name).read_text(encoding="utf-8")
    text = re.sub(r"(?ms)^```.*?^```|^    .*?$|`[^`]*`", "", text)
    assert re.findall(r"<[A-Za-z][^<>]*,[^<>]*>", text) == []


@pytest.mark.parametrize("room", ["bilevel", "reweight", "selectors", "theory", "checkpoint", "estimators"])
def test_an_inner_product_of_the_reference_is_code(room: str) -> None:
    module = importlib.import_module(f"steelyard.{room}")
    shown = [getattr(module, name) for name in module.__all__]
    shown += [value for one in shown if inspect.isclass(one) for name, value in vars(one).items() if name[0] != "_"]
    documents = [inspect.getdoc(one) or "" for one in shown if inspect.isroutine(one) or inspect.isclass(one)]
    assert len(documents) > 1
    prose = [re.sub(r"(?m)``.*?``|`[^`]*`|^ *(>>>|\.\.\.).*$", "", text) for text in documents]
    assert [text for text in prose if re.search(r"<[A-Za-z]", text)] == []


@pytest.fixture(scope="module")
def site() -> ModuleType:
    """What puts files of the repository on the site."""
    return module_at(ROOT / "docs" / "repository.py")


def test_every_link_of_the_site_stays_on_the_site(site: ModuleType) -> None:
    """Links out of docs/ lead to pages that are made of the repository's files; those of these pages, too."""
    outside = site.taken_in()
    pages = [*(ROOT / "docs").rglob("*.md"), *(path for path in outside if path.suffix == ".md")]
    there = {site.place(path) for path in [*pages, *outside, *(ROOT / "docs" / "images").iterdir()]}
    links = [
        (site.place(page), os.path.normpath(Path(site.place(page)).parent / link))
        for page in pages
        for link in re.findall(r"\]\(([^)#\s]+)", site.rewritten(page.read_text(encoding="utf-8"), page))
        if "://" not in link
    ]
    assert [(page, link) for page, link in links if link not in there] == []
    menu = set(re.findall(r"- (repository/\S+)", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert menu == {site.place(path) for path in site.IN_THE_MENU}
    assert {"repository/examples/noisy_csv.py.md", "repository/ARCHITECTURE.md"} <= {link for _, link in links}


def test_a_link_keeps_its_place_in_the_page(site: ModuleType) -> None:
    guide = ROOT / "docs" / "guides" / "weights.md"
    text = "[a](../../results/README.md#top), [b](speed.md), [c](../../studies), [d](https://pytorch.org), [e](gone.md)"
    assert site.rewritten(text, guide) == (
        "[a](../repository/results/README.md#top), [b](speed.md), [c](../repository/studies/README.md), "
        "[d](https://pytorch.org), [e](gone.md)"
    )
    back = site.rewritten("[f](../docs/guides/speed.md)", ROOT / "results" / "README.md")
    assert back == "[f](../../guides/speed.md)"


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
