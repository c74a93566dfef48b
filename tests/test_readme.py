"""The Python of the README, of guides and of explanations runs as it stands, and prints what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.support.places import ROOT

README = ROOT / "README.md"
NUMBER = re.compile(r"\d+(?:\.\d+)?")
DOCS = [page for room in ("guides", "explanations") for page in sorted((ROOT / "docs" / room).glob("*.md"))]
PAGES = [page for page in (README, *DOCS) if "```python\n" in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    names: dict = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in re.findall(r"```python\n(.*?)```", text, re.S):
            exec(compile(block, str(page), "exec"), names)
    printed = capsys.readouterr().out
    for said in re.findall(r"```text\n(.*?)```", text, re.S):
        words, figures = NUMBER.sub("#", said), list(map(float, NUMBER.findall(said)))
        assert words in NUMBER.sub("#", printed)
        assert list(map(float, NUMBER.findall(printed))) == pytest.approx(
            figures, rel=0.03
        )  # other builds round otherwise
    if "gradient" in names:
        assert names["gradient"].shape == names["trajectory"].index.shape
    if page.stem == "weights":
        assert names["result"].weights.shape == (64,)
        assert len(list(names["loader"])) > 0
        assert (tmp_path / "weights.safetensors").exists()


def test_the_readme_is_one_sitting() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 160
