"""How far a computation is, shown where somebody looks: in a terminal or a notebook, by rich."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from steelyard._support._packages import EXPERIMENTS, needed_by

__all__ = ["progress_bars", "shown_progress"]

Show = Callable[[int, str], None]


@contextmanager
def shown_progress(wanted: bool | None, what: str, total: int) -> Iterator[Show]:
    """Yield a function of the number of steps done, and a few words on them, that moves a bar on stderr.

    Args:
        wanted: True: show it; False: do not; None: where stderr is a terminal or a notebook and rich is installed.
        what: what is asked for, for an error: "Maple.fit(progress=True)".
        total: number of steps.

    Raises:
        MissingPackage: `wanted`, and rich is not installed.
    """
    console = _console(wanted, what)
    if console is None:
        yield lambda done, words: None
        return
    with progress_bars(console) as bars:
        bar = bars.add_task(f"step 0/{total}", total=total)

        def show(done: int, words: str) -> None:
            bars.update(bar, completed=done, description=f"step {done}/{total}: {words}")

        yield show


def progress_bars(console: Any) -> Any:
    """Return bars that say what runs, how much of it is done, and how long the rest will take (a `rich` Progress)."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _console(wanted: bool | None, what: str) -> Any:
    """Return rich's console where progress is to be shown."""
    if wanted:
        with needed_by(what, install=EXPERIMENTS):
            from rich.console import Console
        return Console(stderr=True, force_terminal=True)
    if wanted is False or not (sys.stderr.isatty() or "IPython" in sys.modules):
        return None
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        return None
    console = Console(stderr=True)
    return console if console.is_terminal or console.is_jupyter else None
