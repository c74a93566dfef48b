"""What the commands share: options, bars, tables."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import torch
import tyro
from pandas import DataFrame
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from steelyard._support._signals import noted_signals
from steelyard._support._text import printable
from steelyard.experiments.errors import UserError
from steelyard.experiments.runs.run import Run, read_run
from steelyard.experiments.training.evaluation import Evaluation

__all__ = [
    "Overrides",
    "as_table",
    "check_any_seed",
    "check_seeds",
    "check_writable",
    "data_root_of",
    "every",
    "progress_bars",
    "read_runs",
    "seconds",
    "set_threads",
    "stoppable",
    "watcher",
]

_MOST_THREADS = 1024
_LONGEST = 10_000_000  # seconds: more than a hundred days; torch counts milliseconds

Overrides = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="set", metavar="FIELD=VALUE")]


def every(steps: int) -> int:
    """Return ``--checkpoint-every``, or say that it must be at least 1."""
    if steps < 1:
        raise UserError(f"--checkpoint-every must be at least 1, got {steps}")
    return steps


def seconds(option: str, value: float | None) -> float | None:
    """Return the option's seconds, or say that they must be positive."""
    if value is not None and not 0 < value <= _LONGEST:
        raise UserError(f"{option} must be above 0 and at most {_LONGEST} seconds, got {value:g}")
    return value


def stoppable(bars: Progress) -> AbstractContextManager[Callable[[], int]]:
    """Note signals while the block runs; says above the bars that the step will be finished."""
    return noted_signals(lambda: bars.console.print("Finishing the step ..."))


def check_seeds(option: str, seeds: Iterable[int]) -> None:
    """Raise UserError unless all are what torch's generators take, without a sign."""
    for seed in seeds:
        if not 0 <= seed < 2**63:
            raise UserError(f"{option} must be in [0, {2**63 - 1}], got {seed}")


def check_any_seed(seeds: tuple[int, ...]) -> None:
    """Raise UserError if ``--seeds`` names none."""
    if not seeds:
        raise UserError("--seeds needs at least one seed, as in --seeds 0 1 2")


def check_writable(option: str, folder: Path) -> None:
    """Raise UserError if `folder` cannot be made or written into; nothing is left there.

    For before hours of work whose outcome goes there.
    """
    place = folder
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(f"{option} {folder} cannot be written ({place}: {error.strerror}); name another one") from error


def set_threads(threads: int) -> None:
    """Apply ``--threads``."""
    if not 0 <= threads <= _MOST_THREADS:
        raise UserError(f"--threads must be 0 (torch's own choice) to {_MOST_THREADS}, got {threads}")
    if threads:
        torch.set_num_threads(threads)


def read_runs(runs: tuple[Path, ...], *, samples: bool = True) -> list[Run]:
    """Read the run directories; one that is named twice, as patterns that overlap do, is read once.

    Args:
        runs: the directories.
        samples: see `read_run`.
    """
    if not runs:
        raise UserError("name at least one run directory")
    return [read_run(place, samples=samples) for place in {place.resolve(): place for place in runs}.values()]


def data_root_of(given: Path | None) -> Path | None:
    """Return ``--data-root``, or what $STEELYARD_DATA says."""
    named = os.environ.get("STEELYARD_DATA")
    return given or (Path(named) if named else None)


def progress_bars(console: Console) -> Progress:
    """Return bars that say what runs, how much of it is done, and how long the rest will take."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def watcher(bars: Progress, runs: int) -> Callable[[str, int, Evaluation, int], None]:
    """Return a callback that moves one bar over all `runs` and says what the present one has reached."""
    bar = bars.add_task("starting", total=runs)
    finished = 0

    def watch(name: str, seed: int, evaluation: Evaluation, last: int) -> None:
        nonlocal finished
        step = evaluation.visible.step
        text = (
            f"{name} seed {seed}, step {step}/{last}: train {evaluation.visible.train.accuracy:.3f}, "
            f"validation {evaluation.visible.validation.accuracy:.3f}"
        )
        bars.update(bar, completed=finished + step / last, description=printable(text))
        finished += step == last

    return watch


def as_table(frame: DataFrame) -> Table:
    """Return a data frame as a table, numbers to four digits."""
    table = Table(*map(str, frame.columns), box=box.SIMPLE_HEAD, pad_edge=False)
    for row in frame.itertuples(index=False):
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else escape(str(cell)) for cell in row))
    return table
