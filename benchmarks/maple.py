"""MAPLE on Colored MNIST: CPU time of an outer iteration, and of reaching a test accuracy of 0.68.

    STEELYARD_DATA=FOLDER python -m benchmarks.maple            # needs MNIST/raw in the folder; or --data-root FOLDER

50,000 samples, K = 15,000, one thread. The rows separate the levers: float32 and bfloat16 autocast, an allocator
(glibc's) that keeps its memory, all with 100 full-batch inner steps and the inner model's own outputs; then the two
recipes, which cross-fit the outer risk, as long as they run: `maple_100` (the same inner run) and `maple` (300
minibatches of 500). The test set is evaluated outside of the clock and used for nothing. Rows of
`results/benchmarks/maple_outside.json` were measured by hand.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from time import process_time
from typing import Any

import torch
from torch import nn

from benchmarks import _measure
from steelyard.bilevel import Batch
from steelyard.experiments.runs.recipe import load_recipe
from steelyard.experiments.training.problem import Problem

OUTSIDE = _measure.RESULTS / "maple_outside.json"
RAW = _measure.RESULTS / "maple_raw.json"
GOAL = 0.68
REACHED = ("s to 0.68", "s to stay at 0.68")
KEEPS = "memory kept"
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "8000000000"}
# row -> (recipe, overrides, outer iterations; None: as many as asked for)
ROWS: dict[str, tuple[str, list[str], int | None]] = {
    "Steelyard, float32": ("maple_100", ["method.inner.bfloat16=false", "method.folds=1"], None),
    "Steelyard, bfloat16": ("maple_100", ["method.inner.bfloat16=true", "method.folds=1"], None),
    f"Steelyard, bfloat16, {KEEPS}": ("maple_100", ["method.inner.bfloat16=true", "method.folds=1"], None),
    "Steelyard, maple_100, cross-fitted": ("maple_100", [], 20),
    "Steelyard, maple, cross-fitted": ("maple", [], 16),
}


def worker(name: str, steps: int, root: Path, seed: int) -> dict[str, Any]:
    """Run `steps` outer iterations in this process; the clock stops while the model is evaluated."""
    torch.set_num_threads(1)
    recipe_name, overrides, _ = ROWS[name]
    recipe = load_recipe(f"colored_mnist/{recipe_name}", [*overrides, f"method.steps={steps}"], seed=seed)
    splits = recipe.data.load(seed, root)
    problem = Problem(splits, recipe.model, seed)
    found: list[dict[str, float]] = []
    spent, start = 0.0, process_time()

    def accuracy(model: nn.Module, part: Batch) -> float:
        with torch.no_grad():
            return float((problem.head.predict(model(part.inputs)) == part.targets).float().mean())

    def watch(step: int, model: nn.Module, row: Mapping[str, float]) -> None:
        nonlocal spent, start
        spent += process_time() - start
        model.eval()
        scores = {"test": accuracy(model, splits.test), "train": accuracy(model, splits.train)}
        found.append({"step": step, "seconds": spent, **scores})
        start = process_time()

    recipe.method.fit(problem, watch)
    return {"steps": found}


def report() -> None:
    """Write the table."""
    rows = []
    for name, runs in json.loads(RAW.read_text()).items():
        steps = len(runs[0]["steps"])
        spent = [[step["seconds"] for step in run["steps"]] for run in runs]
        single = _measure.middle([(one[-1] - one[0]) / (steps - 1) for one in spent])
        row = {"method": name, "s an outer iteration": single["median"], "low": single["low"], "high": single["high"]}
        row |= {"outer iterations": steps, "seeds": len(runs)}
        means = [mean(run["steps"][i]["test"] for run in runs) for i in range(steps)]
        row["test"] = f"{means[-1]:.3f}"
        row["train"] = f"{mean(run['steps'][-1]['train'] for run in runs):.3f}"
        first = next((i for i in range(steps) if means[i] >= GOAL), None)
        stays = next((i for i in range(steps) if min(means[i:]) >= GOAL), None)
        for column, there in zip(REACHED, (first, stays), strict=True):
            if there is not None:
                taken = mean(run["steps"][there]["seconds"] for run in runs)
                row[column] = f"{taken:.0f} ({there + 1})"
        rows.append(row)
    if OUTSIDE.exists():
        rows += json.loads(OUTSIDE.read_text())
    notes = [
        "Colored MNIST, 50,000 samples, K = 15,000. Inner run: 100 full-batch steps, but `maple`: 300 minibatches of",
        "500. CPU seconds of one thread; evaluation not counted, nor the first iteration, in which libraries load (but",
        "in `s to 0.68`). Rows in turn. A cross-fitted iteration trains a model a fold, and the one that is evaluated.",
        f"{KEEPS.capitalize()}: "
        + " ".join(f"{name}={value}" for name, value in ALLOCATOR.items())
        + " in the environment.",
        "Test: accuracy of the last iteration, not selected. `s to 0.68`: till the mean over seeds is there first; and",
        "from when on it stays (iterations in brackets).",
    ]
    columns = ["method", "s an outer iteration", "low", "high", "outer iterations", "seeds", "train", "test"]
    _measure.write("maple", "An outer iteration of MAPLE", notes, rows, [*columns, *REACHED, "note"])


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", nargs=3, metavar=("ROW", "STEPS", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("--data-root", default=os.environ.get("STEELYARD_DATA"), help="default: $STEELYARD_DATA")
    parser.add_argument("--steps", type=int, default=3, help="outer iterations of the first rows, at least 2")
    parser.add_argument("--seeds", type=int, nargs="+", action=_measure.Seeds, default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    if not (arguments.data_root or arguments.report):
        parser.error("name the folder of MNIST/raw: --data-root FOLDER, or STEELYARD_DATA")
    if arguments.worker:
        name, steps, seed = arguments.worker
        print(json.dumps(worker(name, int(steps), Path(arguments.data_root), int(seed))))
        return
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.rows}
    for seed in [] if arguments.report else arguments.seeds:
        for name in arguments.rows:
            steps = ROWS[name][2] or arguments.steps
            line = ["--data-root", arguments.data_root, "--worker", name, str(steps), str(seed)]
            settings = ALLOCATOR if name.endswith(KEEPS) else None
            found[name].append(_measure.fresh("benchmarks.maple", *line, timeout=7200, settings=settings))
        old = json.loads(RAW.read_text()) if RAW.exists() else {}
        RAW.parent.mkdir(parents=True, exist_ok=True)
        RAW.write_text(json.dumps({**old, **found}, indent=1) + "\n")
    report()


if __name__ == "__main__":
    main()
