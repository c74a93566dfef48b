"""`python -m studies.data_cleaning.curves`: error against time, beside what `theirs` measured.

A half of the labels is drawn again, seed 101. Times are CPU seconds; evaluation is left out.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from torch import Tensor, nn

from steelyard._support import _files
from steelyard._support._text import parse_json
from steelyard.cli.options import check_writable, data_root_of, set_threads
from steelyard.experiments.compare.plots import svg
from steelyard.experiments.compare.table import Table
from steelyard.reweight import SampleWeights
from studies._command import command_line
from studies.data_cleaning.clean import PENALTY
from studies.data_cleaning.problem import Digits, Problem
from studies.data_cleaning.softmax import error, solve
from studies.data_cleaning.weights import SAMPLE, learned

__all__ = ["main", "ours", "reached", "table"]

GOAL = 0.105
_SEED, _SHARE, _EVERY = 101, 0.5, 10
Curve = list[dict[str, Any]]


def ours(problem: Problem, test: Tensor, labels: Tensor, begun: bool, **options: Any) -> Curve:
    """Return test error and CPU seconds of SOBA with a weight a sample, every ten steps.

    Args:
        problem: the data. test, labels: the test images.
        begun: start at a model of the clean images, a short L-BFGS run that is in the time; else at 0.
        options: of `learned`.
    """
    spent, since = 0.0, time.process_time()
    start = None
    if begun:
        start = solve(problem.clean, problem.clean_labels, None, PENALTY / len(problem.clean), steps=12)
    curve: Curve = []

    def note(model: nn.Module, step: int) -> None:
        nonlocal spent, since
        if step % _EVERY == 0:
            spent += time.process_time() - since
            theta = next(model.parameters()).detach().T
            curve.append({"iteration": step, "seconds": spent, "test": error(theta, test, labels)})
            since = time.process_time()

    if start is not None:
        holder = nn.Linear(start.shape[0], start.shape[1], bias=False)
        holder.weight.data = start.T
        note(holder, 0)
    learned(problem, SampleWeights(len(problem.train)), seed=_SEED, start=start, watched=note, **SAMPLE | options)
    return curve


def reached(curve: Curve, goal: float = GOAL) -> float | None:
    """Return the seconds after which the test error is at most `goal` for the first time; None: never."""
    return next((point["seconds"] for point in curve if point["test"] <= goal), None)


def table(curves: Sequence[dict[str, Any]]) -> Table:
    """Return a line a solver: time to the goal, the last and the least error, CPU seconds in all."""
    lines = []
    for one in curves:
        curve, first = one["curve"], reached(one["curve"])
        least = min(point["test"] for point in curve)
        settings = ", ".join(f"{name} {value:g}" for name, value in one["settings"].items())
        last = curve[-1]
        when = f"not in {last['seconds']:.0f}" if first is None else f"{first:.1f}"
        errors = [f"{100 * value:.1f}" for value in (last["test"], least)]
        lines.append([one["problem"], one["solver"], settings, when, *errors, f"{last['seconds']:.0f}"])
    head = ["problem", "solver", "settings", f"CPU s to {100 * GOAL:.1f} %", "last error", "least error", "CPU s"]
    return Table(head, lines)


def drawing(curves: Sequence[dict[str, Any]]) -> str:
    """Return the plot of error against time."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for number, one in enumerate(curves):
        points = [(point["seconds"], 100 * point["test"]) for point in one["curve"] if point["seconds"] > 0]
        style = "-" if one["problem"] == "ours" else "--"
        label = f"{one['solver']} ({one['problem']})"
        axes.plot(*zip(*points, strict=True), style, color=f"C{number % 10}", label=label, linewidth=1.2)
    axes.axhline(100 * GOAL, color="grey", linewidth=0.6)
    axes.set(xscale="log", ylim=(8, 25), xlabel="CPU seconds", ylabel="test error, %")
    axes.legend(fontsize=7)
    return svg(figure)


def curves(
    theirs: Path = Path("results/data_cleaning/theirs.json"),
    out: Path = Path("results/data_cleaning"),
    tabulate: bool = False,
    data_root: Path | None = None,
    threads: int = 1,
) -> None:
    """Measure our curves, and draw and tabulate them beside those of `theirs.py`.

    Args:
        theirs: what `studies/data_cleaning/theirs.py` wrote.
        out: folder for `ours.json`, `curves.md` and `curves.svg`.
        tabulate: only draw what is there.
        data_root: where MNIST lies (default: $STEELYARD_DATA).
        threads: torch threads. 0 leaves torch's own choice.
    """
    set_threads(threads)
    check_writable("--out", out)
    if not tabulate:
        _files.write_text(out / "ours.json", json.dumps(_ours(data_root_of(data_root)), indent=1) + "\n")
    found = parse_json((out / "ours.json").read_text(encoding="utf-8"))
    found += parse_json(theirs.read_text(encoding="utf-8")) if theirs.exists() else []
    _files.write_text(out / "curves.md", table(found).markdown())
    _files.write_text(out / "curves.svg", drawing(found))


def _ours(root: Path | None) -> list[dict[str, Any]]:
    digits = Digits.read(root)
    problem, test = digits.problem(_SEED, _SHARE), digits.test_inputs()
    settings = {key: value for key, value in SAMPLE.items() if key != "epochs"}
    names = {"steelyard's SOBA": False, "steelyard's SOBA, begun on the clean images": True}
    return [
        {
            "problem": "ours",
            "solver": name,
            "settings": settings,
            "curve": ours(problem, test, digits.test_labels, begun),
        }
        for name, begun in names.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with the options given and return the exit status."""
    return command_line(curves, "data_cleaning.curves", arguments)


if __name__ == "__main__":
    sys.exit(main())
