"""`steelyard.report`: a page of a result of one's own code."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

import steelyard
from steelyard import Reweighting


def result() -> Reweighting:
    history = [{"step": k, "outer_loss": 1.0 / (k + 1), "kept": 3.0} for k in range(4)]
    weights, kept = torch.tensor([1.0, 2.0, 0.0, 1.0, 0.5]), torch.tensor([1.0, 0.5, 0.5, 0.0, 1.0])
    return Reweighting(weights, kept, history, torch.tensor([7, 3, 9, 1, 4]))


def test_the_page_has_the_samples_and_their_columns(tmp_path: Path) -> None:
    steelyard.report(result(), tmp_path / "page.html", title="Mine", columns={"label": ["a", "b", "a", "<b>", "a"]})
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<h1>Mine</h1>" in page
    assert "sum to 3.0 samples" in page
    rows = re.findall(r"<tr><td>(\d+)</td><td>(\d+)</td><td>([\d.]+)</td><td>([\d.]+)</td><td>(.*?)</td></tr>", page)
    assert [row[1] for row in rows] == ["1", "9", "4", "3", "7"]
    assert rows[0] == ("1", "1", "0.000", "1.000", "&lt;b&gt;")
    assert "http" not in page.replace("http://www.w3.org", "")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"columns\['label'\] has 2 entries, the result has 5 samples"):
        steelyard.report(result(), tmp_path / "page.html", columns={"label": [1, 2]})
    with pytest.raises(TypeError, match="result must be a Reweighting"):
        steelyard.report("weights", tmp_path / "page.html")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_missing_package_names_the_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("steelyard.experiments.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"needs jinja2, which is not installed: pip install 'steelyard\["):
        steelyard.report(result(), tmp_path / "page.html")
