"""What the engine's checks cost, averaged over a thousand calls.

    python -m benchmarks.checks              # the MLP and a ResNet-18, batch 128, T = 1 and 3

A call is one recorded window of T training steps and the hypergradient by its samples. Measured is the CPU time, on
one thread, of a call without checks, of one with those of every call (the sum along u, the copy that parameters are
compared with, the projection), and of one in which the dearer ones are due (random signs; for T > 1 the curvature,
too); in turn, medians.
Of a thousand calls eleven are due: 1, 2, 4, ..., 256, 512, 768.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any
from unittest import mock

import torch

from benchmarks import _measure
from benchmarks.hypergradient import Problem, steelyard
from steelyard.bilevel import Truncated, recorder, truncated
from steelyard.bilevel.sweep.known import Known

CELLS = [f"{model}/128/{steps}/{kind}" for model in ("mlp", "resnet18") for steps in (1, 3) for kind in ("sgd", "adam")]
DUE = 11 / 1000


def no_objection(*arguments: Any) -> Callable[[Any], None]:
    """Stand in for `window.objection_to`."""
    return lambda found: None


@contextmanager
def without() -> Iterator[None]:
    """Leave out every check."""
    with (
        mock.patch.object(Known, "due", return_value=False),
        mock.patch.object(truncated, "objection_to", no_objection),
        mock.patch.object(truncated, "check_replayed", return_value=None),
        mock.patch.object(recorder, "projection", return_value=None),
        mock.patch.object(recorder.Recorder, "_copy_after", return_value=None),
        mock.patch.object(recorder.Recorder, "_check_between_steps", return_value=None),
        mock.patch.object(recorder.Recorder, "trajectory", _unchecked),
        mock.patch.object(recorder.Trajectory, "check", return_value=None),
    ):
        yield


def _unchecked(self: recorder.Recorder) -> recorder.Trajectory:
    steps = list(self._window)
    self._window.clear()
    names = tuple(steps[-1].parameters)
    return recorder.Trajectory(self._module, self._objective, steps, type(self._optimizer), names, {})


@contextmanager
def due(now: bool) -> Iterator[None]:
    """Have the dearer checks due at every call, or at none."""
    with mock.patch.object(Known, "due", return_value=now):
        yield


def worker(cell: str, rounds: int) -> dict[str, Any]:
    """Measure one cell in this process."""
    torch.set_num_threads(1)
    problem = Problem.of(cell, torch.float32)
    reuse = problem.steps == 1

    def call() -> None:
        steelyard(problem, Truncated(problem.steps), reuse=reuse)

    ways = {"without": without, "every call": lambda: due(False), "due": lambda: due(True)}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    call()
    for _ in range(rounds):
        for name, way in ways.items():
            with way():
                spent[name].append(_measure.seconds(call)[0])
    return {name: median(values) for name, values in spent.items()}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", nargs=2, metavar=("CELL", "ROUNDS"), help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="+", default=CELLS, help="cells")
    parser.add_argument("--rounds", type=int, default=5, help="of a ResNet; of the MLP ten times as many")
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(worker(arguments.worker[0], int(arguments.worker[1]))))
        return
    rows = []
    for cell in arguments.only:
        rounds = arguments.rounds * (10 if cell.startswith("mlp") else 1)
        got = _measure.fresh("benchmarks.checks", "--worker", cell, str(rounds))
        if "failed" in got:
            rows.append({"cell": cell, "note": got["failed"]})
            continue
        base = got["without"]
        every, dear = got["every call"] / base - 1, (got["due"] - got["every call"]) / base
        rows.append(
            {
                "cell": cell,
                "call s": base,
                "every call %": 100 * every,
                "when due %": 100 * dear,
                "averaged %": 100 * (every + DUE * dear),
            }
        )
    notes = [
        "CPU time on top of a call without checks (T training steps, the outer gradient, the hypergradient), in per",
        "cent of it: what every call pays, what one pays in which the dearer checks are due, and both averaged over",
        "1,000 calls. T = 1 with `reuse=True`. The aim is 5 %.",
    ]
    columns = ["cell", "call s", "every call %", "when due %", "averaged %", "note"]
    _measure.write("checks", "The engine's checks", notes, rows, columns)


if __name__ == "__main__":
    main()
