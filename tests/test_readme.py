"""The Python of the README, of guides and of explanations runs as it stands, and prints what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.support.places import ROOT

README = ROOT / "README.md"
NUMBER = re.compile(r"\d+(?:\.\d+)?")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
DOCS = [page for room in ("guides", "explanations") for page in sorted((ROOT / "docs" / room).glob("*.md"))]
PAGES = [page for page in (README, *DOCS) if "```python\n" in page.read_text(encoding="utf-8")]
SCIKIT_LEARN = ROOT / "docs" / "guides" / "scikit_learn.md"


def carry_out(page: Path, kinds: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> dict:
    """Run the blocks of these kinds, and return their names; those of the README share none."""
    names: dict = {}
    printed: str | None = None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for kind, body in FENCE.findall(page.read_text(encoding="utf-8")):
            if kind in kinds:
                names = {} if page == README else names
                exec(compile(body, str(page), "exec"), names)
                printed = capsys.readouterr().out
            elif kind == "text" and printed is not None:
                assert NUMBER.sub("#", printed) == NUMBER.sub("#", body)
                said = [*map(float, NUMBER.findall(body))]  # other builds round otherwise
                assert [*map(float, NUMBER.findall(printed))] == pytest.approx(said, rel=0.03)
            else:
                printed = None
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = carry_out(page, ("python",), capsys)
    if "gradient" in names:
        assert names["gradient"].shape == names["trajectory"].index.shape
    if page.stem == "weights":
        assert names["result"].weights.shape == (64,)
        assert len(list(names["loader"])) > 0
        assert (tmp_path / "weights.safetensors").exists()


def test_weights_in_xgboost_and_lightgbm(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("xgboost")
    pytest.importorskip("lightgbm")
    names = carry_out(SCIKIT_LEARN, ("python", "py"), capsys)
    rows, labels = names["test"]
    found = names["booster"].predict(names["xgboost"].DMatrix(rows)), names["trees"].predict(rows)
    assert all(((one > 0.5) == labels).mean() > 0.9 for one in found)


def test_the_readme_is_one_sitting() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 146
