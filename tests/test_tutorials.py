"""The tutorials run as they stand: Python, commands and files of a page, top to bottom, print what the page says.

Commands of many seconds run shortened, and are then compared in words alone; with their figures under `slow`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from steelyard.cli.command import main
from steelyard.experiments.data import official
from steelyard.experiments.methods import Method
from steelyard.experiments.runs import recipe
from steelyard.experiments.weigh import plan
from tests.support.layouts import TINY, write_waterbirds, write_weights
from tests.support.places import TUTORIALS
from tests.support.shrunk import small

FENCE = re.compile(r'^```(\w*)(?: title="([\w.]+)")?\n(.*?)^```$', re.M | re.S)
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")

Command = Callable[[list[str]], int]

pytestmark = pytest.mark.usefixtures("unchecked_shapes")


def steelyard(arguments: list[str]) -> int:
    """Carry a command out; what has a * is what a shell makes of it."""
    return main([one for word in arguments for one in (sorted(map(str, Path().glob(word))) if "*" in word else [word])])


def carry_out(
    name: str, capsys: pytest.CaptureFixture[str], command: Command = steelyard, figures: bool = True
) -> dict[str, Any]:
    """Carry out the blocks of a page in the working directory, and return the names of its Python."""
    names: dict[str, Any] = {}
    printed = ""
    with torch.random.fork_rng():
        for kind, title, body in FENCE.findall((TUTORIALS / f"{name}.md").read_text(encoding="utf-8")):
            if title:
                Path(title).write_text(body, encoding="utf-8")
            elif kind == "python":
                exec(compile(body, name, "exec"), names)
                printed = capsys.readouterr().out
            elif kind == "sh":
                capsys.readouterr()
                for line in body.splitlines():
                    first, *arguments = shlex.split(line, comments=True)
                    assert first == "steelyard"
                    assert not command(arguments)
                printed = capsys.readouterr().out
            elif kind == "text":
                compare(body, printed, figures)
    return names


def compare(said: str, printed: str, figures: bool) -> None:
    """Find every line of what a page says, its figures as near as other builds round."""
    words = NUMBER.sub("#", printed)
    for line in said.splitlines():
        masked = NUMBER.sub("#", line)
        assert masked in words
        if figures:
            rows = 0.03 if "worst group" in line else 0.0  # four or five samples of the smallest group
            expected = pytest.approx(numbers(line), rel=0.05, abs=rows)
            like = [within(one, masked) for one in printed.splitlines() if masked in NUMBER.sub("#", one)]
            assert any(one == expected for one in like), (line, like)


def within(line: str, masked: str) -> list[float]:
    """Return the numbers of a line that stand in its part `masked`, wherever that begins."""
    first = NUMBER.sub("#", line).split(masked)[0].count("#")
    return numbers(line)[first : first + masked.count("#")]


def numbers(text: str) -> list[float]:
    return [float(one.replace(",", "")) for one in NUMBER.findall(text)]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("STEELYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "400")  # no line of the command's is broken


@pytest.mark.parametrize("name", ["noisy_labels", "groups_on_validation", "own_loop"])
def test_python(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    carry_out(name, capsys)


@pytest.mark.parametrize("figures", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_csv(figures: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortened, a training has 20 steps instead of 300, which is settings of the plan and no option of the command."""
    if not figures:
        monkeypatch.setattr(plan, "_FEWEST_STEPS", 20)

    def command(arguments: list[str]) -> int:
        return steelyard([*arguments, *([] if figures else ["--epochs", "1"])])

    names = carry_out("first_csv", capsys, command, figures)
    assert len(names["predicted"]) == 569
    assert (Path("runs/weigh/tumours/page.html")).is_file()


def test_photographs(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On small images in the published layout; a ResNet-18 with random parameters, a few steps."""
    birds = replace(official.OFFICIAL["waterbirds"], splits=(16, 8, 12), groups=TINY[0])
    monkeypatch.setattr("steelyard.cli.data.OFFICIAL", {"waterbirds": birds})
    weights = write_weights(tmp_path / "resnet18.pth")
    backbone = ["data.backbone.model=resnet18", f"data.backbone.weights={weights}", "data.backbone.workers=0"]
    asked = False

    def command(arguments: list[str]) -> int:
        nonlocal asked
        if arguments[0] == "data" and not asked:
            asked = True
            assert steelyard(arguments) == 2
            assert "https://" in capsys.readouterr().err
            write_waterbirds(Path("DATA"))
            return 0
        if arguments[0] != "run":
            return steelyard(arguments)
        for name in [one for one in arguments[1:] if one.startswith("waterbirds/")]:
            options = [one for one in arguments[1:] if not one.startswith("waterbirds/")]
            sets = [word for override in small(name, *backbone) for word in ("--set", override)]
            assert not steelyard(["run", name, *options, *sets])
        return 0

    carry_out("photographs", capsys, command, figures=False)
    assert list(Path("runs/waterbirds/features/maple").rglob("*.html"))
    assert list(Path("runs/told_less").rglob("result.parquet"))


def test_a_method(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The two lines of the page's diff are carried out in memory."""

    def command(arguments: list[str]) -> int:
        from symmetric import Symmetric  # type: ignore[import-not-found]  # which the page wrote

        monkeypatch.setattr(recipe, "Method", Method | Symmetric)
        return steelyard([*arguments, *(["--set", "method.training.steps=20"] if arguments[0] != "compare" else [])])

    carry_out("add_a_method", capsys, command)
    assert (Path("runs/mine/seed1/environment.json")).is_file()
    assert list(Path("runs/tune").rglob("trials.md"))
