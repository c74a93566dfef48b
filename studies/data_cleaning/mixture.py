"""`python -m studies.data_cleaning.mixture`: three sources of the same images, a weight a source.

The first source has right labels. In the second each digit has the label of another one, always the same. The third
answers another question: how much ink there is, in ten classes.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from steelyard._support import _files
from steelyard.cli.options import check_seeds, check_writable, data_root_of, set_threads
from steelyard.experiments.compare.table import Table
from steelyard.reweight import SampleWeights, Shared
from studies._command import command_line
from studies._kept import check_no_fewer
from studies.data_cleaning.problem import CLASSES, Digits, Problem, inputs
from studies.data_cleaning.softmax import error, solve
from studies.data_cleaning.weights import learned

__all__ = ["main", "mixed", "rows_of", "table"]

SOURCES = ("right labels", "wrong labels", "another question")
_L2 = 1e-3
_OPTIONS: dict[str, Any] = {"l2": _L2, "rate": 0.05, "outer_rate": 0.1, "batch_size": 250, "epochs": 20}


def mixed(digits: Digits, seed: int, each: int = 1000, clean: int = 500) -> tuple[Problem, Tensor]:
    """Return a problem of `each` images of every source, and the source of each of its samples ``(3 each,)``."""
    random = numpy.random.RandomState(seed)
    order = torch.from_numpy(random.permutation(len(digits.images)))[: 3 * each + clean]
    train, held = order[: 3 * each], order[3 * each :]
    truth = digits.labels[train]
    source = torch.arange(3 * each) % 3
    swapped = (torch.arange(CLASSES) + random.randint(1, CLASSES)) % CLASSES
    ink = digits.images[train].flatten(1).float().sum(1)
    decile = (ink.argsort().argsort() * CLASSES) // len(ink)
    labels = torch.where(source == 0, truth, torch.where(source == 1, swapped[truth], decile))
    clean_images = inputs(digits.images[held])
    return Problem(inputs(digits.images[train]), labels, truth, clean_images, digits.labels[held], 2 / 3), source


def rows_of(digits: Digits, seed: int, each: int = 1000, clean: int = 500) -> list[dict[str, Any]]:
    """Return a row for each way to weights: error on the test images, mean weight of each source."""
    problem, source = mixed(digits, seed, each, clean)
    count = len(source)
    ways = {
        "uniform": lambda: torch.ones(count),
        "a weight a source": lambda: learned(problem, SampleWeights(Shared(source)), seed=seed, **_OPTIONS),
        "a weight a sample": lambda: learned(problem, SampleWeights(count), seed=seed, **_OPTIONS),
        "the right source alone (oracle)": lambda: (source == 0).float(),
    }
    rows = []
    for name, way in ways.items():
        since = time.process_time()
        weights = way()
        seconds = time.process_time() - since
        theta = solve(problem.train, problem.labels, weights / weights.max(), _L2)
        means = [float(weights[source == number].mean()) for number in range(3)]
        test = error(theta, digits.test_inputs(), digits.test_labels)
        rows.append({"weights": name, "seed": seed, "error": test, "means": means, "seconds": seconds})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return errors in per cent, the sources' mean weights, and in how many seeds the right source is first."""
    lines = []
    for name in dict.fromkeys(row["weights"] for row in rows):
        own = [row for row in rows if row["weights"] == name]
        errors = [100 * row["error"] for row in own]
        spread = f" ± {statistics.stdev(errors):.1f}" if len(errors) > 1 else ""
        means = [f"{statistics.mean(row['means'][number] for row in own):.3f}" for number in range(3)]
        first = sum(row["means"][0] > max(row["means"][1:]) for row in own)
        lines.append([name, f"{statistics.mean(errors):.1f}{spread}", *means, f"{first} of {len(own)}"])
    return Table(["weights", "test error", *SOURCES, "the right source first"], lines)


def mixture(
    out: Path = Path("results/data_cleaning"),
    seeds: tuple[int, ...] = (101, 102, 103, 104, 105),
    data_root: Path | None = None,
    threads: int = 1,
) -> None:
    """Learn a weight for each of three sources of MNIST images, and train softmax regression on them.

    Args:
        out: folder for `mixture.md` and `mixture.json`.
        seeds: of the images, the wrong labels and the minibatches.
        data_root: where MNIST lies (default: $STEELYARD_DATA).
        threads: torch threads. 0 leaves torch's own choice.
    """
    set_threads(threads)
    check_seeds("--seeds", seeds)
    check_writable("--out", out)
    digits = Digits.read(data_root_of(data_root))
    rows = [row for seed in seeds for row in rows_of(digits, seed)]
    check_no_fewer(out / "mixture.json", len(rows))
    _files.write_text(out / "mixture.json", json.dumps(rows, indent=1) + "\n")
    _files.write_text(out / "mixture.md", table(rows).markdown())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with the options given and return the exit status."""
    return command_line(mixture, "data_cleaning.mixture", arguments)


if __name__ == "__main__":
    sys.exit(main())
