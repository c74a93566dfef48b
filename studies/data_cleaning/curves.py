"""`python -m studies.data_cleaning.curves`: error against time, beside what `theirs` measured.

A half of the labels is drawn again. Times are CPU seconds; evaluation is left out. Stopped and started again it
resumes.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

from steelyard._support import _files
from steelyard._support._text import parse_json
from steelyard.bilevel import Batch, WeightedLoss
from steelyard.cli.options import check_writable, data_root_of, set_threads
from steelyard.experiments.compare.plots import svg
from steelyard.experiments.compare.table import Table
from steelyard.reweight import F2SA, SABA, SOBA, SampleWeights, SingleLoop, SingleLoopStep, StocBiO
from studies._command import command_line
from studies.data_cleaning.clean import PENALTY
from studies.data_cleaning.problem import CLASSES, Digits
from studies.data_cleaning.softmax import error, sample_losses, solve
from studies.data_cleaning.theirs import their_data
from studies.data_cleaning.weights import CROSS_ENTROPY, l2_penalty

__all__ = ["Posed", "curve", "main", "reached", "table", "tuned"]

GOAL = 0.105
_TUNED_ON, _MEASURED_ON, _SHARE = 0, 101, 0.5
_SOLVERS: dict[str, type[SingleLoop]] = {"SOBA": SOBA, "SABA": SABA, "F2SA": F2SA, "StocBiO": StocBiO}
_GRID = [{"rate": rate, "outer_rate": outer} for rate, outer in product((0.3, 1.0), (0.1, 0.3))]
_BATCH, _EVERY, _START = 500, 10, 1 / (1 + math.exp(2))  # the benchmark's weights begin at sigmoid(-2)
_PARTS = (("x", "y"), ("clean", "clean_y"), ("test", "test_y"))  # as `theirs` calls them
Curve = list[dict[str, Any]]


class Posed(NamedTuple):
    """A problem as a curve needs it: inputs and labels of three kinds, and the inner L2.

    Attributes:
        train, labels, clean, clean_labels, test, test_labels: the images.
        l2: beside the mean of w_i l_i.
    """

    train: Tensor
    labels: Tensor
    clean: Tensor
    clean_labels: Tensor
    test: Tensor
    test_labels: Tensor
    l2: float

    @classmethod
    def ours(cls, digits: Digits, seed: int) -> Posed:
        """Return the study's problem of a seed: pixels and a 1."""
        own = digits.problem(seed, _SHARE)
        clean = own.clean, own.clean_labels
        return cls(own.train, own.labels, *clean, digits.test_inputs(), digits.test_labels, 1e-3)

    @classmethod
    def theirs(cls, digits: Digits) -> Posed:
        """Return the benchmark's problem as it states it: its split, its scaling, its L2."""
        rows = {"train_images": digits.images, "test_images": digits.test}
        arrays = {name: images.reshape(len(images), -1).numpy() for name, images in rows.items()}
        labels = {"train_labels": digits.labels.numpy(), "test_labels": digits.test_labels.numpy()}
        data = {name: torch.from_numpy(one) for name, one in their_data(arrays | labels).items()}
        train, clean, test = ((data[part], data[labels]) for part, labels in _PARTS)
        return cls(*train, *clean, *test, l2=0.2)


def curve(
    posed: Posed,
    solver: str,
    settings: dict[str, float],
    seconds: float,
    seed: int,
    begun: bool = False,
    steps: int = 10**6,
) -> Curve:
    """Return test error and CPU seconds of a solver with a weight a sample, every ten steps; the end has more.

    Args:
        posed: the problem.
        solver: a name of `_SOLVERS`.
        settings: rate of the inner steps, outer_rate of Adam.
        seconds: after which it ends.
        seed: of the minibatches.
        begun: start at a model of the clean images, a short L-BFGS run that is in the time; else at 0.
        steps: after which it ends, too; a multiple of ten.
    """
    spent, since = 0.0, time.process_time()
    model = nn.Linear(posed.train.shape[1], CLASSES, bias=False)
    nn.init.zeros_(model.weight)
    if begun:
        model.weight.data = solve(posed.clean, posed.clean_labels, None, PENALTY / len(posed.clean), steps=12).T
    made = _SOLVERS[solver](
        model,
        SGD(model.parameters(), lr=settings["rate"]),
        WeightedLoss(CROSS_ENTROPY, regulariser=partial(l2_penalty, l2=posed.l2)),
        Batch.of(posed.clean, posed.clean_labels),
        SampleWeights(len(posed.train), start=_START),
        outer_optimizer=partial(Adam, lr=settings["outer_rate"]),
        seed=seed,
    )
    points: Curve = []

    def note(seen: SingleLoopStep | None) -> bool:
        nonlocal spent, since
        step = 0 if seen is None else seen.step + 1
        if step % _EVERY:
            return False
        spent += time.process_time() - since
        theta = model.weight.detach().T
        points.append({"iteration": step, "seconds": spent, "test": error(theta, posed.test, posed.test_labels)})
        ends = spent >= seconds or step >= steps or not bool(torch.isfinite(theta).all())
        if ends:
            points[-1]["validation"] = error(theta, posed.clean, posed.clean_labels)
            points[-1]["outer"] = float(sample_losses(theta, posed.clean, posed.clean_labels).mean())
        since = time.process_time()
        return ends

    if begun:
        note(None)
    made.fit(Batch.of(posed.train, posed.labels), epochs=10**6, batch_size=_BATCH, callbacks=[note])
    return points


def tuned(posed: Posed, solver: str, seconds: float) -> dict[str, float]:
    """Return the settings of the grid that end with the least error on the clean images."""

    def of(settings: dict[str, float]) -> float:
        try:
            found: float = curve(posed, solver, settings, seconds, _TUNED_ON)[-1]["validation"]
        except FloatingPointError:  # it diverged
            return math.inf
        return found

    return min(_GRID, key=of)


def reached(points: Curve, goal: float = GOAL) -> float | None:
    """Return the seconds after which the test error is at most `goal` for the first time; None: never."""
    return next((point["seconds"] for point in points if point["test"] <= goal), None)


def table(curves: Sequence[dict[str, Any]]) -> Table:
    """Return a line a solver: time to the goal, the last and the least error, the outer loss, CPU seconds in all."""
    lines = []
    for one in curves:
        points, first = one["curve"], reached(one["curve"])
        least = min(point["test"] for point in points)
        settings = ", ".join(f"{name} {value:g}" for name, value in one["settings"].items())
        last = points[-1]
        when = f"not in {last['seconds']:.0f}" if first is None else f"{first:.1f}"
        errors = [f"{100 * value:.1f}" for value in (last["test"], least)]
        outer = f"{last['outer']:.3f}" if "outer" in last else ""
        lines.append([one["problem"], one["solver"], settings, when, *errors, outer, f"{last['seconds']:.0f}"])
    when = f"CPU s to {100 * GOAL:.1f} %"
    return Table(["problem", "solver", "settings", when, "last error", "least error", "outer loss", "CPU s"], lines)


def drawing(curves: Sequence[dict[str, Any]]) -> str:
    """Return the plot of error against time, the study's problem beside the benchmark's."""
    figure, both = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained", sharey=True)
    for axes, problem, title in zip(both, ("ours", "theirs"), _TITLES, strict=True):
        for one in (one for one in curves if one["problem"] == problem):
            points = [(point["seconds"], 100 * point["test"]) for point in one["curve"] if point["seconds"] > 0]
            style = "-" if "steelyard" in one["solver"] else "--"
            kind = next(number for number, name in enumerate(_COLOURED) if name in one["solver"])
            label = one["solver"] if "steelyard" in one["solver"] else f"the benchmark's {one['solver']}"
            axes.plot(*zip(*points, strict=True), style, color=f"C{kind}", label=label, linewidth=1.2)
        axes.axhline(100 * GOAL, color="grey", linewidth=0.6)
        axes.set(xscale="log", ylim=(6, 25), xlabel="CPU seconds", title=title)
        axes.legend(fontsize=7, loc="lower left")
    both[0].set(ylabel="test error, %")
    return svg(figure)


_TITLES = ("this study's problem: L2 0.001", "the benchmark's problem: L2 0.2")
_COLOURED = ("begun", *_SOLVERS, "FSLA")


def curves(
    theirs: Path = Path("results/data_cleaning/theirs.json"),
    out: Path = Path("results/data_cleaning"),
    tabulate: bool = False,
    seconds: float = 8.0,
    tuning_seconds: float = 2.0,
    data_root: Path | None = None,
    threads: int = 1,
) -> None:
    """Measure our curves, and draw and tabulate them beside those of `theirs.py`.

    Args:
        theirs: what `studies/data_cleaning/theirs.py` wrote.
        out: folder for `ours.json`, `curves.md` and `curves.svg`.
        tabulate: only draw what is there.
        seconds: CPU seconds of a curve.
        tuning_seconds: CPU seconds of each setting that is tried.
        data_root: where MNIST lies (default: $STEELYARD_DATA).
        threads: torch threads. 0 leaves torch's own choice.
    """
    set_threads(threads)
    check_writable("--out", out)
    own = out / "ours.json"
    found: list[dict[str, Any]] = parse_json(own.read_text(encoding="utf-8")) if own.exists() else []
    if not tabulate:
        there = {(one["problem"], one["solver"]) for one in found}
        for one in _ours(data_root_of(data_root), there, seconds, tuning_seconds):
            found.append(one)
            _files.write_text(own, json.dumps(found, indent=1) + "\n")
    found = found + (parse_json(theirs.read_text(encoding="utf-8")) if theirs.exists() else [])
    found.sort(key=lambda one: one["problem"])
    _files.write_text(out / "curves.md", table(found).markdown())
    _files.write_text(out / "curves.svg", drawing(found))


def _ours(
    root: Path | None, there: set[tuple[str, str]], seconds: float, tuning_seconds: float
) -> Iterator[dict[str, Any]]:
    """Yield the curves that are not `there`; on the benchmark's problem settings are chosen by its clean images."""
    digits = Digits.read(root)
    for problem in ("ours", "theirs"):
        if problem == "ours":
            posed, tried = Posed.ours(digits, _MEASURED_ON), Posed.ours(digits, _TUNED_ON)
        else:
            posed = tried = Posed.theirs(digits)
        for solver in _SOLVERS:
            settings: dict[str, float] = {}
            for begun in (False, True)[: 2 if (problem, solver) == ("ours", "SOBA") else 1]:
                name = f"steelyard's {solver}" + ", begun on the clean images" * begun
                if (problem, name) in there:
                    continue
                settings = settings or tuned(tried, solver, tuning_seconds)
                points = curve(posed, solver, settings, seconds, _MEASURED_ON, begun)
                yield {"problem": problem, "solver": name, "settings": settings, "curve": points}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with the options given and return the exit status."""
    return command_line(curves, "data_cleaning.curves", arguments)


if __name__ == "__main__":
    sys.exit(main())
