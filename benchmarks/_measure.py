"""What the benchmarks share: CPU time and peak memory of this process, fresh processes, tables."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "benchmarks"


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU time of one call, which a busy machine disturbs less than wall time, and its result."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    return _status("VmRSS")


class Seeds(argparse.Action):
    """The option ``--seeds``: a seed that is named twice is refused, for one run counted twice hides its spread."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        """Keep the seeds; end the process with one line and status 2 where one is named twice."""
        if twice := [seed for seed in values if values.count(seed) > 1]:
            parser.error(f"--seeds names {twice[0]} twice; name each seed once")
        setattr(namespace, self.dest, values)


def reset_peak() -> None:
    """Start a new peak of the resident memory (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Return the peak of the resident memory since `reset_peak`, in bytes."""
    return _status("VmHWM")


def anonymous() -> int:
    """Return the bytes of this process that are in memory and not pages of a file."""
    return _status("RssAnon")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def fresh(
    module: str, *arguments: str, timeout: float = 7200, settings: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run ``python -m module arguments`` on one thread in a new process; return the JSON of its last line.

    Args:
        module: what to run.
        arguments: of the command line.
        timeout: in seconds.
        settings: further environment variables.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **(settings or {})}
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:200]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def middle(values: Sequence[float]) -> dict[str, float]:
    """Return median, lowest and highest."""
    return {"median": median(values), "low": min(values), "high": max(values), "runs": len(values)}


def processor() -> str:
    """Return the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())


def machine() -> str:
    """Return what a table says of where it was measured, the load of the moment included."""
    name = processor()
    load = os.getloadavg()[1]
    busy = "busy machine, " if load > 1.5 else ""
    return f"{name}, {os.cpu_count()} cores, {busy}load {load:.1f}; one thread; torch {torch.__version__}"


def write(
    name: str,
    title: str,
    notes: Sequence[str],
    rows: list[dict[str, Any]],
    columns: Sequence[str],
    table: str | None = None,
) -> None:
    """Write results/benchmarks/NAME.json and the table NAME.md, or under the name `table`."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    table = table or name
    (RESULTS / f"{table}.json").write_text(json.dumps(rows, indent=1) + "\n")
    lines = [f"# {title}", "", f"Remake with `python -m benchmarks.{name}`. {machine()}.", ""]
    lines += [*notes, "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in rows]
    (RESULTS / f"{table}.md").write_text("\n".join(lines) + "\n")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
