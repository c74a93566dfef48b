"""The examples run, and show what they say."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from steelyard import Reweighting
from steelyard.experiments.runs.recipe import load_recipe
from steelyard.experiments.runs.run import execute
from tests.support.modules import module_at
from tests.support.places import EXAMPLES

pytestmark = pytest.mark.usefixtures("unchecked_shapes")  # they give NumPy arrays, as the guides say one may

NUMBER = re.compile(r"\d+(?:\.\d+)?")
_PATIENCE = 400  # seconds until a test gives up on processes that take some ten on a free machine


def example(name: str) -> ModuleType:
    return module_at(EXAMPLES / f"{name}.py")


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


def test_a_csv_with_wrong_labels(tmp_path: Path) -> None:
    found = example("noisy_csv").main(str(tmp_path))
    assert found["among as many suspects"] > 0.8 * found["wrong labels"]
    assert found["mean weight of a wrong label"] < 0.3 * found["mean weight of a right label"]
    rows = list(csv.DictReader((tmp_path / "weights.csv").read_text().splitlines()))
    suspicion = [float(row["suspicion"]) for row in rows]
    assert suspicion == sorted(suspicion, reverse=True)
    assert sorted(int(row["row"]) for row in rows) == list(range(519))


def test_a_folder_of_images(tmp_path: Path) -> None:
    found = example("image_folder").main(str(tmp_path))
    kept = [found[f"keep-probability where {what}"] for what in ("it contradicts", "the tint agrees")]
    assert kept[0] > kept[1] + 0.5
    assert found["test accuracy under the weights"] > found["test accuracy of plain training"] + 0.3
    assert len(list((tmp_path / "images").glob("*/*.png"))) == 1797


def test_weights_in_other_estimators() -> None:
    accuracies = example("sklearn_estimator").main()
    assert len(accuracies) >= 3
    for plain, weighted in accuracies.values():
        assert weighted > plain


def test_searches_on_noisy_folds() -> None:
    recorded, checked, weighted = example("noisy_folds").main(draws=2).values()
    assert checked > recorded + 0.02
    assert weighted > recorded + 0.02


def test_selections_from_embeddings() -> None:
    typical, random, both, as_many = example("selectors_on_embeddings").main().values()
    assert typical > random + 0.1
    assert both > as_many


def test_a_risk_of_ones_own() -> None:
    found = example("own_risk").main()
    assert found["relative error of the hypergradient"] < 1e-6
    assert found["tumours missed after"] < found["tumours missed before"] / 2


def test_two_processes_and_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A budget that is a share of all samples, of which each rank holds a part."""
    settings = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(EXAMPLES / "torchrun.py"), "two.safetensors"]
    done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=_PATIENCE)
    assert done.returncode == 0, done.stderr
    assert "2 process(es), rank 0 held 899 samples" in done.stdout
    example("torchrun").main(str(tmp_path / "one.safetensors"))
    assert "1 process(es), rank 0 held 1797 samples" in capsys.readouterr().out
    two, one = (Reweighting.load(tmp_path / f"{name}.safetensors") for name in ("two", "one"))
    torch.testing.assert_close(two.weights, one.weights, rtol=0, atol=1e-4)
    torch.testing.assert_close(two.probabilities, one.probabilities, rtol=0, atol=1e-4)


def test_a_text_classifier() -> None:
    pytest.importorskip("transformers", reason="the extra [huggingface]")
    with torch.random.fork_rng():
        found = example("huggingface_text").main()
    assert found["wrong labels"] < found["right labels"] - 0.05


def test_the_notebook_prints_what_stands_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    cells = json.loads((EXAMPLES / "first_steps.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict = {}
    shown = 0
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        exec(compile("".join(cell["source"]), "first_steps.ipynb", "exec"), names)
        printed = capsys.readouterr().out
        said = "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")
        assert NUMBER.sub("#", printed) == NUMBER.sub("#", said)
        assert [*map(float, NUMBER.findall(printed))] == pytest.approx([*map(float, NUMBER.findall(said))], rel=0.05)
        shown += sum("image/png" in output.get("data", {}) for output in cell["outputs"])
    assert shown == 1
    assert names["wrong"][names["suspects"]].mean() > 0.8


def test_the_table_names_every_example() -> None:
    named = set(re.findall(r"\]\(([\w.]+)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8")))
    assert named == {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
