"""Loading by worker processes: ours, which stay between passes, beside torch's own with persistent_workers.

    python -m benchmarks.workers               # rows of a file, and items that take Python a while; 0, 1 and 2 workers

A pass reads all samples once, a chunk at a time, and does nothing with them. Rounds alternate in one process, and what
is reported is the median of the ratios of wall time within a round, and the ratio of the CPU time of all rounds, of the
process and its workers, which a busy machine disturbs less: ours over torch's DataLoader (batch_size=None over lists of
rows, persistent_workers=True), both after a first pass that starts the workers, and over ours without workers.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks import _measure
from steelyard.bilevel import MemoryMapped, Streamed

RATIOS = ("ours / torch's", "CPU, ours / torch's", "ours / no workers")


class Slow(Dataset[Tensor]):
    """Items that cost some Python each, as augmentations do."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> Tensor:
        total = 0
        for number in range(300):
            total += (row * number) % 7
        return torch.full((64,), float(total))


class Many(Dataset[Tensor]):
    """Item `rows` is these items of a data set, stacked: what torch's loader is given."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, rows: list[int]) -> Tensor:
        many = getattr(self.dataset, "__getitems__", None)
        return torch.stack([self.dataset[row] for row in rows]) if many is None else many(rows)


class Chunks:
    """A sampler of lists of rows."""

    def __init__(self, count: int, size: int) -> None:
        self.rows = [rows.tolist() for rows in torch.arange(count).split(size)]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.rows)


def seconds(inputs: Iterable[Tensor]) -> tuple[float, float]:
    """Return wall time and CPU time of a pass."""
    start = time.perf_counter(), cpu()
    for _ in inputs:
        pass
    return time.perf_counter() - start[0], cpu() - start[1]


def cpu() -> float:
    """Return the CPU seconds of this process and its workers (Linux)."""
    ticks = 0
    for worker in multiprocessing.active_children():
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # user, system
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def torchs(dataset: Any, chunk: int, workers: int) -> DataLoader[Tensor]:
    """Return torch's loader of the same pieces."""
    context = multiprocessing.get_context("forkserver") if workers else None
    return DataLoader(
        Many(dataset),
        batch_size=None,
        sampler=Chunks(len(dataset), chunk),
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context=context,
    )


def measured(name: str, dataset: Any, chunk: int, workers: int, rounds: int) -> dict[str, Any]:
    """Return a row of the table."""
    targets = torch.zeros(len(dataset))
    theirs = torchs(dataset, chunk, workers)
    ways: dict[str, Callable[[], Iterable[Tensor]]]
    with Streamed.of(dataset, targets, chunk=chunk, workers=workers) as stream:
        alone = Streamed.of(dataset, targets, chunk=chunk)
        ways = {
            "ours": lambda: (piece.inputs for piece in stream.chunks(None)),
            "torch": lambda: theirs,
            "none": lambda: (piece.inputs for piece in alone.chunks(None)),
        }
        first = {way: seconds(ways[way]()) for way in ways}
        spent = [{way: seconds(ways[way]()) for way in ways} for _ in range(rounds)]
    return {
        "data": name,
        "workers": workers,
        "pass s": median(one["ours"][0] for one in spent),
        "first pass s": first["ours"][0],
        "torch's first s": first["torch"][0],
        "ours / torch's": median(one["ours"][0] / one["torch"][0] for one in spent),
        "CPU, ours / torch's": sum(one["ours"][1] for one in spent) / sum(one["torch"][1] for one in spent),
        "ours / no workers": median(one["ours"][0] / one["none"][0] for one in spent),
    }


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dry", action="store_true", help="print, and write nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "features.npy"
        np.save(place, np.random.default_rng(0).standard_normal((100_000, 128), dtype=np.float32))
        cases = [("rows of a file", MemoryMapped(place), 8192), ("items of Python", Slow(2048), 256)]
        for name, dataset, chunk in cases:
            for workers in (0, 1, 2):
                rows.append(measured(name, dataset, chunk, workers, arguments.rounds))
                print(rows[-1])
    if arguments.dry:
        return
    notes = [
        "A pass over all samples: 100,000 rows of 128 float32 in a `.npy` file, 8,192 at a time; and 2,048",
        f"items that take Python 300 rounds of a loop each, 256 at a time. Medians of {arguments.rounds}",
        "rounds; the ratios are those of wall times within a round, in one process, and of the CPU time of",
        "all rounds with that of the workers. `torch's`: a DataLoader of the same pieces with",
        "`persistent_workers=True`. The first of all passes also starts the server that the workers come",
        "from, which imports torch.",
    ]
    columns = [*("data", "workers", "pass s", "first pass s", "torch's first s"), *RATIOS]
    _measure.write("workers", "Loading by worker processes", notes, rows, columns)


if __name__ == "__main__":
    main()
