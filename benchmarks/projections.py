"""The projection onto {0 <= s <= 1, sum s = K} for n = 10,000,000, beside bisection.

    python -m benchmarks.projections

The bisection is ours, after the description of the authors' code (REFERENCE: the shift by bisection between 0 and the
largest entry, stopped at an error of 1e-3 in the sum or after 20 halvings). `reads` counts how often n entries are
read, of these or of a vector made of them; the floor is the time of one read and one write into new memory, a clamp.
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


def bisection(values: Tensor, budget: float, halvings: int = 20) -> tuple[Tensor, int]:
    """Return clamp(s - v, 0, 1) with v by bisection to 1e-3 in the sum, and how often n entries were read."""
    low, high = 0.0, float(values.max())
    middle, reads = 0.0, 1
    for _ in range(halvings):
        reads += 3  # difference, clamp, sum
        middle = (low + high) / 2
        excess = float((values - middle).clamp_(0, 1).sum(dtype=torch.float64)) - budget
        if abs(excess) < 1e-3:
            break
        low, high = (low, middle) if excess < 0 else (middle, high)
    return (values - middle).clamp_(0, 1), reads + 2


# Ours reads the entries to check them, for (the ball's size,) their ends, the threshold and the result.
METHODS: dict[str, Callable[[Tensor], tuple[Tensor, int]]] = {
    "box and sum, Steelyard": lambda values: (project_box_simplex(values, BUDGET), 4),
    "box and sum, bisection (20 halvings)": lambda values: bisection(values, BUDGET),
    "box and sum, bisection (60 halvings)": lambda values: bisection(values, BUDGET, 60),
    "ball, p = 1, Steelyard": lambda values: (project_ball(values, BUDGET, p=1), 5),
    "ball, p = 2, Steelyard": lambda values: (project_ball(values, 1000.0), 4),
}


def worker(method: str, dtype: str) -> dict[str, Any]:
    """Measure one method in this process."""
    torch.set_num_threads(1)
    values = torch.rand(N, generator=torch.Generator().manual_seed(0)) * 1.5 - 0.2
    values = values.to(getattr(torch, dtype))
    project = METHODS[method]
    project(values[: BUDGET + 1000])
    floor = min(_measure.seconds(lambda: values.clamp(0, 1))[0] for _ in range(5))
    before = _measure.resident()
    _measure.reset_peak()
    spent, (result, reads) = _measure.seconds(lambda: project(values))
    memory = (_measure.peak() - before) / 2**20
    off = float(result.double().sum()) - BUDGET if method.startswith("box") else None
    return {"seconds": spent, "floor": floor, "reads": reads, "memory": memory, "off": off}


def main() -> None:
    """Measure all, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", nargs=2, metavar=("METHOD", "DTYPE"), help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(worker(*arguments.worker)))
        return
    cells = [(name, dtype) for dtype in ("float32", "float64") for name in METHODS]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {cell: [] for cell in cells}
    for _ in range(arguments.runs):
        for cell in cells:
            found[cell].append(_measure.fresh("benchmarks.projections", "--worker", *cell))
    rows = []
    for (name, dtype), runs in found.items():
        spent = _measure.middle([run["seconds"] for run in runs])
        floor = _measure.middle([run["floor"] for run in runs])["median"]
        rows.append(
            {
                "method": name,
                "dtype": dtype,
                **{key: spent[key] for key in ("median", "low", "high")},
                "floor": floor,
                "of the floor": spent["median"] / floor,
                "reads": runs[0]["reads"],
                "memory MiB": runs[0]["memory"],
                "sum - K": runs[0]["off"],
            }
        )
    notes = [
        f"n = {N:,}, K = {BUDGET:,}; seconds of CPU time, medians of {arguments.runs} fresh processes, in turn.",
        "The other core was busy: memory bandwidth is shared, the floor too. Bisection: ours, after the description of",
        "the authors' code. `floor`: one read and one write into new memory (a clamp). `reads`: counted, of n entries.",
        "Memory holds the result. `sum - K` of the result, its own rounding included.",
    ]
    columns = ["method", "dtype", "median", "low", "high", "floor", "of the floor", "reads", "memory MiB", "sum - K"]
    _measure.write("projections", "Projections", notes, rows, columns)


if __name__ == "__main__":
    main()
