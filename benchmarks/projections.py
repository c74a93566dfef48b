"""The projection onto {0 <= s <= 1, sum s = K} for n = 10,000,000, beside bisection.

    python -m benchmarks.projections

The bisection is ours, after the description of the authors' code (REFERENCE: the shift by bisection between 0 and the
largest entry, stopped at an error of 1e-3 in the sum or after 20 halvings). `passes` counts reads of the n entries in
units of what one sum takes; the floor is one read and one write.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import _measure
from steelyard.reweight.projections import project_ball, project_box_simplex

N = 10_000_000
BUDGET = 3_000_000


def bisection(values: Tensor, budget: float, halvings: int = 20) -> Tensor:
    """Return clamp(s - v, 0, 1) with v by bisection to 1e-3 in the sum."""
    low, high = 0.0, float(values.max())
    middle = 0.0
    for _ in range(halvings):
        middle = (low + high) / 2
        excess = float((values - middle).clamp_(0, 1).sum(dtype=torch.float64)) - budget
        if abs(excess) < 1e-3:
            break
        low, high = (low, middle) if excess < 0 else (middle, high)
    return (values - middle).clamp_(0, 1)


METHODS: dict[str, Callable[[Tensor], Tensor]] = {
    "box and sum, Steelyard": lambda values: project_box_simplex(values, BUDGET),
    "box and sum, bisection (20 halvings)": lambda values: bisection(values, BUDGET),
    "box and sum, bisection (60 halvings)": lambda values: bisection(values, BUDGET, 60),
    "ball, p = 1, Steelyard": lambda values: project_ball(values, BUDGET, p=1),
    "ball, p = 2, Steelyard": lambda values: project_ball(values, 1000.0),
}


def worker(method: str) -> dict[str, Any]:
    """Measure one method in this process."""
    torch.set_num_threads(1)
    values = torch.rand(N, generator=torch.Generator().manual_seed(0)) * 1.5 - 0.2
    METHODS[method](values[: BUDGET + 1000])
    one = min(_measure.seconds(lambda: values.sum())[0] for _ in range(5))
    both = min(_measure.seconds(lambda: values.clamp(0, 1))[0] for _ in range(5))
    before = _measure.resident()
    _measure.reset_peak()
    spent, result = _measure.seconds(lambda: METHODS[method](values))
    memory = (_measure.peak() - before) / 2**20
    off = float(result.double().sum()) - BUDGET if method.startswith("box") else None
    return {"seconds": spent, "passes": spent / one, "floor": both, "memory": memory, "off": off}


def main() -> None:
    """Measure all, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(worker(arguments.worker)))
        return
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in METHODS}
    for _ in range(arguments.runs):
        for name in METHODS:
            found[name].append(_measure.fresh("benchmarks.projections", "--worker", name))
    rows = [
        {
            "method": name,
            **{key: _measure.middle([run["seconds"] for run in runs])[key] for key in ("median", "low", "high")},
            "passes": _measure.middle([run["passes"] for run in runs])["median"],
            "floor": _measure.middle([run["floor"] for run in runs])["median"],
            "memory MiB": runs[0]["memory"],
            "sum - K": runs[0]["off"],
        }
        for name, runs in found.items()
    ]
    notes = [f"n = {N:,}, K = {BUDGET:,}, float32; seconds of CPU time, medians of {arguments.runs} processes.", ""]
    notes += ["`passes`: in units of one sum over the entries. `floor`: one read and one write (a clamp), seconds."]
    columns = ["method", "median", "low", "high", "passes", "floor", "memory MiB", "sum - K"]
    _measure.write("projections", "Projections", notes, rows, columns)


if __name__ == "__main__":
    main()
