"""MAPLE for 1e5 to 1e7 samples whose features stay on disk: time of an outer step, and memory a sample.

    python -m benchmarks.scale                       # 640 MB of features under --folder, removed again
    python -m benchmarks.scale --sizes 100000

Samples have 32 float16 features, in a .npy file that a `DataLoader` reads in chunks of 16,384. An outer step: mask, one
epoch over the K = 0.3 n kept samples (MLP 32-64-1, batches of 1,024, SGD with momentum), the gradient of the square
root of V-REx on all n samples, the sweep for all n, Adam and both projections. CPU time of one thread in a
fresh process; the file is in the page cache. Memory is the highest of what is not pages of a file, above the same
process after an outer step on 4,096 samples.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks import _measure
from steelyard.bilevel import Batch, MemoryMapped, Streamed, Trajectory, Truncated, WeightedLoss
from steelyard.experiments.compare.plots import COLOURS, STYLE, svg
from steelyard.reweight import InnerRun, Maple, Sqrt, VREx

SIZES = (100_000, 1_000_000, 10_000_000)
FEATURES, CHUNK, BATCH = 32, 16_384, 1024
PARTS = ("inner", "outer gradient", "sweep", "mask, Adam, projections", "reading")
# Bytes a sample that no implementation of this outer step is without.
FLOOR = {"w and s": 8, "their gradients": 8, "mask": 4, "moments of Adam": 16}
LABELS = {"targets": 8, "ids": 8, "environments": 8, "rows": 8}
RAW = _measure.RESULTS / "scale_raw.json"


class Clock:
    """CPU seconds by part; what runs inside of a part is not counted to it."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(PARTS, 0.0)
        self._open: list[str] = []
        self._last = time.process_time()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count to `name` what happens inside."""
        self._settle()
        self._open.append(name)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, counted to `name`."""

        def run(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return run

    def lap(self) -> dict[str, float]:
        """Return what was spent since the last lap."""
        self._settle()
        spent, self.spent = self.spent, dict.fromkeys(PARTS, 0.0)
        return spent

    def _settle(self) -> None:
        now = time.process_time()
        if self._open:
            self.spent[self._open[-1]] += now - self._last
        self._last = now


class Timed(MemoryMapped):
    """Rows of a file, the reading counted."""

    def __init__(self, path: Path, clock: Clock) -> None:
        super().__init__(path, torch.float32)
        self._clock = clock

    def __getitems__(self, rows: list[int]) -> Tensor:
        """Return the rows."""
        with self._clock.part("reading"):
            return super().__getitems__(rows)


def write(folder: Path, count: int) -> None:
    """Write features and labels: feature 0 has the label's sign for 75 %, 1 for 90 or 80 % by environment."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = (count, FEATURES)
    features = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float16, shape)
    labels = np.lib.format.open_memmap(folder / "labels.npy", "w+", np.uint8, (count, 2))
    generator = np.random.default_rng(0)
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        sign = generator.choice([-1.0, 1.0], size)
        environment = generator.integers(0, 2, size)
        part = generator.standard_normal((size, FEATURES), dtype=np.float32)
        agrees = [generator.random(size) < share for share in (0.75, np.where(environment == 0, 0.9, 0.8))]
        for column, right in enumerate(agrees):
            part[:, column] += 2 * np.where(right, sign, -sign)
        features[start : start + size] = part
        labels[start : start + size] = np.stack([sign > 0, environment], 1)


def _loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs[:, 0], targets.to(outputs.dtype), reduction="none")


class TimedRun(InnerRun):
    """The inner run, counted."""

    clock: Clock

    def __call__(self, train: Batch, weight: Tensor) -> tuple[nn.Module, Trajectory]:
        """Run."""
        with self.clock.part("inner"):
            return super().__call__(train, weight)


class TimedTruncated(Truncated):
    """The estimator, counted: its sweep, and what is not its sweep."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.direction.losses = clock.timed("sweep", self.direction.losses)  # type: ignore[method-assign]

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Answer."""
        with self._clock.part("outer gradient"):
            return super().__call__(*args, **kwargs)


def outer_steps(folder: Path, steps: int, clock: Clock) -> list[dict[str, float]]:
    """Learn weights for the samples in `folder`; return the seconds of every outer step by part."""
    laps: list[dict[str, float]] = []
    labels = torch.from_numpy(np.load(folder / "labels.npy")).long()
    count = len(labels)
    rows = Timed(folder / "features.npy", clock)
    data = Streamed.of(rows, labels[:, 0].clone(), environment=labels[:, 1].clone(), chunk=CHUNK)
    del labels
    budget = 3 * count // 10
    inner = TimedRun(
        lambda: nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 1)),
        partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        WeightedLoss(_loss),
        steps=-(-budget // BATCH),
        batch_size=BATCH,
    )
    inner.clock = clock
    maple = Maple(inner, Sqrt(VREx()), budget=budget, steps=steps, estimator=TimedTruncated(clock))
    with clock.part("mask, Adam, projections"):
        maple.fit(data, callbacks=[lambda step: laps.append(clock.lap())])
    return laps


class Peak:
    """The highest `_measure.anonymous` while inside, by looking every 20 ms."""

    def __enter__(self) -> Peak:
        self.highest, self._done = _measure.anonymous(), Event()
        self._thread = Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._done.wait(0.02):
            self.highest = max(self.highest, _measure.anonymous())

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()


def worker(folder: Path, count: int, steps: int) -> dict[str, Any]:
    """Measure in this process; the data are removed afterwards."""
    torch.set_num_threads(1)
    try:
        for name, size in (("few", 4096), ("all", count)):
            write(folder / name, size)
        outer_steps(folder / "few", 1, Clock())
        clock, before, start = Clock(), _measure.anonymous(), time.perf_counter()
        with Peak() as peak:
            laps = outer_steps(folder / "all", steps, clock)
        wall = (time.perf_counter() - start) / steps
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"n": count, "laps": laps, "wall": wall, "bytes": (peak.highest - before) / count}


def report() -> None:
    """Write the table and the plot of what was measured."""
    rows = [one for one in json.loads(RAW.read_text()) if "failed" not in one]
    for row in rows:
        totals = [sum(lap.values()) for lap in row["laps"]]
        row.update(row["laps"][totals.index(min(totals))])
        row["s a step"], row["median"], row["steps"] = min(totals), median(totals), len(totals)
        row["us a sample"] = 1e6 * row["s a step"] / row["n"]
        row["MiB"] = row["bytes"] * row["n"] / 2**20
        row["bytes a sample"] = round(row["bytes"])
        row["floor"] = sum(FLOOR.values()) + sum(LABELS.values())
    count = "; ".join(f"{name} {size}" for name, size in {**FLOOR, **LABELS}.items())
    first, last = rows[0], rows[-1]
    slope = np.polyfit(np.log([row["n"] for row in rows]), np.log([row["s a step"] for row in rows]), 1)[0]
    notes = [
        "CPU seconds of an outer step of MAPLE, features read from disk (the page cache) a chunk at a time; 32 float16",
        f"features a sample, {CHUNK:,} samples a chunk, one epoch over K = 0.3 n kept samples as the inner run. The",
        "parts do not contain the reading. The machine was shared, and CPU time varied by a factor of three with what",
        "else ran: shown is the quickest outer step, and the median beside it. Bytes: the most memory above a run on",
        "4,096 samples, over n. Floor:",
        f"what the scalars of a sample take, {count} bytes.",
        "",
        f"From n = {first['n']:,} to {last['n']:,} the slope of log time by log n is {slope:.3f} (1 is linear).",
        "",
        "![time of an outer step by n](scale.svg)",
    ]
    columns = ["n", "steps", "s a step", "median", *PARTS, "us a sample", "MiB", "bytes a sample", "floor"]
    _measure.write("scale", "MAPLE by the number of samples", notes, rows, columns)
    (_measure.RESULTS / "scale.svg").write_text(plot(rows))


def plot(rows: list[dict[str, Any]]) -> str:
    """Draw seconds by n on logarithmic axes, with a line of slope 1 through the largest n."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.6))
        axes = figure.subplots()
        sizes = [row["n"] for row in rows]
        for colour, name in zip(COLOURS, ("s a step", *PARTS), strict=False):
            line = {"linewidth": 2.4} if name == "s a step" else {"linewidth": 1.2}
            label = "outer step" if name == "s a step" else name
            axes.plot(sizes, [row[name] for row in rows], "o-", color=colour, label=label, markersize=4, **line)
        end = rows[-1]
        axes.plot(sizes, [end["s a step"] * n / end["n"] for n in sizes], "--", color="#667085", label="slope 1")
        axes.set(xscale="log", yscale="log", xlabel="samples n", ylabel="CPU seconds an outer step")
        axes.legend(frameon=False, fontsize=9, loc="upper left")
        return svg(figure)


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", nargs=2, type=int, metavar=("N", "STEPS"), help=argparse.SUPPRESS)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--steps", type=int, default=3, help="outer steps")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/scale"))
    parser.add_argument("--report", action="store_true", help="the table again from what was measured")
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(worker(arguments.folder / str(arguments.worker[0]), *arguments.worker)))
        return
    for count in [] if arguments.report else arguments.sizes:
        line = ["--folder", str(arguments.folder), "--worker", str(count), str(arguments.steps)]
        found = _measure.fresh("benchmarks.scale", *line, timeout=7200)
        print(found)
        old = [one for one in (json.loads(RAW.read_text()) if RAW.exists() else []) if one.get("n") != count]
        RAW.write_text(json.dumps(sorted([*old, found], key=lambda one: one.get("n", 0)), indent=1) + "\n")
    report()


if __name__ == "__main__":
    main()
