"""The examples run, and show what they say."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from steelyard.experiments.runs.recipe import load_recipe
from steelyard.experiments.runs.run import execute

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_picture_of_a_run(tmp_path: Path) -> None:
    small = ["method.steps=2", "method.inner.steps=3"]
    execute(load_recipe("coloured_digits/maple", small, seed=0), tmp_path / "run", name="maple")
    means = example("keep_probabilities").main(str(tmp_path / "run"), str(tmp_path / "picture.svg"))
    assert means["colour disagrees"] > 0
    assert (tmp_path / "picture.svg").read_text().startswith("<?xml")


def test_steps_as_a_table(tmp_path: Path) -> None:
    example("to_tensorboard").main(tmp_path / "log", table=True)
    rows = list(csv.DictReader((tmp_path / "log" / "steps.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == list(range(12))
    assert set(rows[0]) == {
        *("step", "outer_loss", "budget", "kept", "accuracy elsewhere"),
        *(f"{name}_{what}" for name in ("weights", "probabilities") for what in ("gradient_norm", "change")),
    }
    assert float(rows[-1]["outer_loss"]) < float(rows[0]["outer_loss"]) / 2
    assert float(rows[-1]["accuracy elsewhere"]) > float(rows[0]["accuracy elsewhere"])


def test_steps_in_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    example("to_tensorboard").main(tmp_path)
    assert [place.name.split(".")[0] for place in tmp_path.iterdir()] == ["events"]
