"""What the commands that run or compare recipes share: an option, bars, reading of runs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import Progress

from steelyard._support._errors import UserError
from steelyard._support._progress import progress_bars
from steelyard._support._signals import noted_signals
from steelyard._support._text import printable
from steelyard.experiments.runs.run import Run, read_run
from steelyard.experiments.training.evaluation import Evaluation, SplitMetrics

__all__ = ["Overrides", "command_line", "progress_bars", "read_runs", "say", "stoppable", "watcher"]

Overrides = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="set", metavar="FIELD=VALUE")]


def stoppable(bars: Progress) -> AbstractContextManager[Callable[[], int]]:
    """Note signals while the block runs; says above the bars that the step will be finished."""
    return noted_signals(lambda: bars.console.print("Finishing the step ..."))


def read_runs(runs: tuple[Path, ...], *, samples: bool = True) -> list[Run]:
    """Read the run directories; one that is named twice, as patterns that overlap do, is read once.

    Args:
        runs: the directories.
        samples: see `read_run`.
    """
    if not runs:
        raise UserError("name at least one run directory")
    return [read_run(place, samples=samples) for place in {place.resolve(): place for place in runs}.values()]


def watcher(bars: Progress, runs: int) -> Callable[[str, int, Evaluation, int], None]:
    """Return a callback that moves one bar over all `runs` and says what the present one has reached."""
    bar = bars.add_task("starting", total=runs)
    finished = 0

    def watch(name: str, seed: int, evaluation: Evaluation, last: int) -> None:
        nonlocal finished
        step = evaluation.visible.step
        train, validation = (_reached(one) for one in (evaluation.visible.train, evaluation.visible.validation))
        text = f"{name} seed {seed}, step {step}/{last}: train {train}, validation {validation}"
        bars.update(bar, completed=finished + step / last, description=printable(text))
        finished += step == last

    return watch


def _reached(metrics: SplitMetrics) -> str:
    """Return the accuracy, of a regression the mean squared error."""
    return f"{metrics.accuracy:.3f}" if metrics.errors is None else f"{metrics.errors.mse:.4g}"


def say(console: Console, lines: Iterable[str]) -> None:
    """Print lines as they are, but for what a terminal would take for more than text."""
    for line in lines:
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def command_line() -> str:
    """Return the command that this process was asked for, as a page shows it."""
    words = [word for word in sys.argv[1:] if word not in ("--overwrite", "--resume")]
    return printable(shlex.join(["steelyard", *words]))
