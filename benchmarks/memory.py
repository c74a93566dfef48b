"""What a record of T steps takes, for each way of storing it: bytes, peak memory, time, error.

    python -m benchmarks.memory                            # ResNet-18 (32x32), batch 32: an hour on a quiet core
    python -m benchmarks.memory --batch 4 --only adam/20   # smaller activations; the states are the same

A cell is OPTIMIZER/T/STORAGE, in a fresh process on one thread that has taken a T = 1 step before. `record` counts the
parameters and optimizer states that the record holds when the hypergradient is asked for; `peak` is the highest
resident memory from the first recorded step to the answer, above the one before. Error: of the hypergradient, relative
to that of the whole record. One is not offered and says what that error means: "noise" multiplies the parameters by
1 + 1e-7 N(0, 1), about a rounding of float32. (Parameters rounded to bfloat16, instead of their differences, are
refused: the gradient there is another.)
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import _measure
from benchmarks.hypergradient import Problem, engine
from steelyard.bilevel import Recorder, Storage, Trajectory, Truncated, WeightedLoss

STORAGES = {
    "whole": Storage(),
    "bfloat16": Storage(dtype=torch.bfloat16),
    "every 3": Storage(checkpoint_every=3),
    "every 5": Storage(checkpoint_every=5),
}
NOISE = "noise"
CELLS = [
    f"{kind}/{steps}/{storage}"
    for kind in ("sgd", "adam")
    for steps, storages in (
        (1, ["whole"]),
        (5, ["whole", "bfloat16", "every 3", NOISE]),
        (20, ["whole", "bfloat16", "every 5"]),
    )
    for storage in storages
    if (kind, storage) != ("adam", "bfloat16")  # refused
]
RAW = _measure.RESULTS / "memory_raw.json"
MIB = 2**20
# Else glibc keeps freed gradients in its heap, where holes between them, other in every run, hide what a record takes.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "500000"}
OBJECTIVE = WeightedLoss(partial(F.cross_entropy, reduction="none"))


def states(run: Trajectory) -> Iterator[Tensor]:
    """Yield the parameters and optimizer states of a record."""
    yield from run.after.values()
    for step in [*run.earlier, *run.steps]:
        yield from step.parameters.values()
        for state in [*step.state.values(), *step.full_state.values()]:
            yield from (one for one in state.values() if isinstance(one, Tensor))


def worker(cell: str, batch: int, out: str) -> dict[str, Any]:
    """Measure one cell in this process."""
    torch.set_num_threads(1)
    kind, steps, storage = cell.split("/")
    once(Problem.of(f"resnet18/4/1/{kind}", torch.float32), "whole", 1)  # libraries and kernels load
    problem = Problem.of(f"resnet18/{batch}/{steps}/{kind}", torch.float32)
    found, value = once(problem, storage, int(steps))
    torch.save(value, out)
    return found


def once(problem: Problem, storage: str, steps: int) -> tuple[dict[str, Any], Tensor]:
    """Record and differentiate; return the figures and the hypergradient."""
    optimizer = problem.optimizer()
    before = _measure.resident()
    _measure.reset_peak()

    def train() -> Trajectory:
        kept = STORAGES.get(storage, Storage())
        with Recorder(problem.model, optimizer, OBJECTIVE, steps, storage=kept) as recorder:
            for batch, weight in problem.batches(problem.weight):
                optimizer.zero_grad()
                recorder.loss(batch, weight).backward()
                optimizer.step()
            return recorder.trajectory()

    training, record = _measure.seconds(train)
    for step in record.steps if storage == NOISE else []:
        step.parameters = {name: p * (1 + 1e-7 * torch.randn_like(p)) for name, p in step.parameters.items()}
    counted = sum(one.numel() * one.element_size() for one in states(record))
    seconds, value = _measure.seconds(lambda: Truncated(steps)(record, problem.outer))
    peak = _measure.peak() - before
    found = {"training": training, "seconds": seconds, "record": counted / MIB, "peak": peak / MIB}
    return {**found, "processor": _measure.processor(), "engine": engine()}, value


def measure(cell: str, batch: int, truth: Path) -> None:
    """Measure a cell in a fresh process, and its error against the hypergradient of the whole record in `truth`."""
    kind, steps, storage = cell.split("/")
    with TemporaryDirectory() as folder:
        out = Path(folder) / "out.pt"
        line = ["--batch", str(batch), "--worker", cell, str(out)]
        found = _measure.fresh("benchmarks.memory", *line, timeout=7200, settings=ALLOCATOR)
        if out.exists():
            value, whole = torch.load(out, weights_only=True), truth / f"{kind}_{steps}.pt"
            if storage == "whole":
                torch.save(value, whole)
            elif whole.exists():
                right = torch.load(whole, weights_only=True)
                found["error"] = float((value - right).norm() / right.norm())
    rows = json.loads(RAW.read_text()) if RAW.exists() else []
    rows = [row for row in rows if (row["cell"], row["batch"]) != (cell, batch)]
    RAW.parent.mkdir(parents=True, exist_ok=True)
    RAW.write_text(json.dumps([*rows, {"cell": cell, "batch": batch, **found}], indent=1) + "\n")


def report() -> None:
    """Write the table of all that was measured."""
    raw = [row for row in json.loads(RAW.read_text()) if "failed" not in row]
    raw.sort(key=lambda row: (row["batch"], CELLS.index(row["cell"])))
    found = {(row["cell"], row["batch"]): row for row in raw}
    rows, grown = [], []
    for row in raw:
        kind, steps, storage = row["cell"].split("/")
        whole = found.get((f"{kind}/{steps}/whole", row["batch"]))
        if whole is not None and any(whole.get(one) != row.get(one) for one in ("processor", "engine")):
            whole = None
        rows.append(
            {
                "optimizer": kind,
                "batch": row["batch"],
                "T": int(steps),
                "storage": storage,
                "processor": row.get("processor", "Intel(R) Xeon(R) Processor"),
                "engine": row.get("engine", "older"),
                "record MiB": row["record"],
                "peak MiB": row["peak"],
                "training s": row["training"],
                "hypergradient s": row["seconds"],
                "time": (row["training"] + row["seconds"]) / (whole["training"] + whole["seconds"]) if whole else None,
                "error": row.get("error"),
            }
        )
        few = found.get((re.sub("/20/", "/5/", row["cell"]), row["batch"])) if storage == "whole" else None
        if few is not None and few.get("engine") == row.get("engine") and few is not row and steps == "20":
            states, peak = row["record"] - few["record"], row["peak"] - few["peak"]
            grown.append(f"{kind}, batch {row['batch']}: the states grow by {states:.0f} MiB, the peak by {peak:.0f}.")
    missing = [cell for cell in CELLS if not any(cell == row["cell"] for row in raw)]
    notes = [
        "ResNet-18 (32x32), 11.2 million parameters, P = 42.6 MiB. `record`: parameters and optimizer states held;",
        "`peak`: resident memory above that before; time in CPU seconds, and over that of the whole record; error: of",
        "the hypergradient, relative to that of the whole record (0: bit for bit the same). `every c`: checkpoints.",
        "`noise` is no storage, and shows what an error means: parameters moved by about a rounding of float32.",
        "(Rounded to bfloat16 themselves they are refused.) The run starts at random parameters, which move by 5 to",
        "8 % a step. `Storage(device=...)` is for a GPU: not measured, none was at hand.",
        "At T = 20 checkpoints take less than bfloat16, exactly, in more time; at T = 5 neither lowers the peak much.",
        "bfloat16 is refused for Adam: before it was, the error at T = 5, batch 4, was 2.20 (moments rounded too).",
        "A first call on the model is measured, which is checked: with T > 1 H u in float64 (of a window of Adam's",
        "cold steps every call is taken over values of float64). `engine`: what",
        "`git rev-parse HEAD:steelyard/bilevel` called it; 24ab6ed and 7024c61 checked eight samples, which was given",
        "up: today's checks all, in twice that time and 1 GiB more, as 8a3d650 and ce8e325 did; `older` ones checked",
        "less and kept no copy of the parameters after the last step: their `record` would have P more.",
        "Times are of one run each, beside other work on the machine.",
        f"Cells not measured: {', '.join(missing) or 'none'}.",
        "",
        "From T = 5 to 20 with the whole record: " + " ".join(grown),
        "All with `MALLOC_MMAP_THRESHOLD_=500000` in the environment: without it freed gradients leave holes in",
        "glibc's heap that aligned tensors of the same size do not fit in, and the peak moves by 100 MiB between runs.",
    ]
    columns = ["optimizer", "batch", "T", "storage", "processor", "engine", "record MiB", "peak MiB"]
    columns += ["training s", "hypergradient s", "time"]
    _measure.write("memory", "Memory of a record", notes, rows, [*columns, "error"])


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", nargs=2, metavar=("CELL", "OUT"), help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="+", default=[""], help="cells that begin so")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--report", action="store_true", help="the table again from what was measured")
    arguments = parser.parse_args()
    if arguments.worker:
        cell, out = arguments.worker
        print(json.dumps(worker(cell, arguments.batch, out)))
        return
    with TemporaryDirectory() as truth:
        for cell in [] if arguments.report else CELLS:
            if cell.startswith(tuple(arguments.only)):
                measure(cell, arguments.batch, Path(truth))
                report()
    if arguments.report:
        report()


if __name__ == "__main__":
    main()
