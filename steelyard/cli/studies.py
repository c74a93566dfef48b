"""The top-q bound for losses of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pandas import DataFrame
from rich.console import Console

from steelyard.cli.moved import THEOREM
from steelyard.cli.shared import as_table, check_seeds, check_writable, set_threads
from steelyard.experiments.errors import UserError

__all__ = ["bounds"]

_MOST_SHOWN = 20  # hypotheses


def bounds(
    out: Path | None = None,
    losses: Path | None = None,
    transpose: bool = False,
    fixed_before_data: bool = False,
    clean: Path | None = None,
    s: int | None = None,
    q: int | None = None,
    delta: float | None = None,
    loss_range: float | None = None,
    draws: int | None = None,
    seed: int = 0,
    threads: int = 1,
) -> None:
    """Compute the terms of the top-q generalisation bound for a loss matrix of your own.

    Example: steelyard bounds --losses losses.npy --s 64 --q 16 --loss-range 1.0 --out runs/bounds

    Args:
        out: folder for terms.csv and summary.csv (default: runs/bounds).
        losses: losses (hypotheses x samples) on the data as trained on, .npy or Parquet.
        transpose: the rows of the matrix are samples and its columns hypotheses; needs --losses.
        fixed_before_data: all hypotheses were fixed before those samples were drawn, so none was trained on them or
            chosen by them; without this nothing is called a certificate; needs --losses.
        clean: the same for the clean data, where it is known; needs --losses.
        s: batch size (16); needs --losses.
        q: how many of the largest losses of a batch count (4); needs --losses.
        delta: the bound fails with at most this probability (0.05); needs --losses.
        loss_range: M, the most by which two losses of one hypothesis can differ, 1 for the 0-1 loss; needs --losses,
            which needs it.
        draws: Monte Carlo draws (1000); needs --losses.
        seed: of all random draws.
        threads: torch threads; more than one is slower here. 0 leaves torch's own choice.
    """
    from steelyard.experiments.bounds import bounds as run_bounds

    set_threads(threads)
    check_seeds("--seed", [seed])
    settings = {"clean": clean, "s": s, "q": q, "delta": delta, "loss_range": loss_range, "draws": draws}
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    flags = {"transpose": transpose, "fixed_before_data": fixed_before_data}
    asked = [*given, *(name for name, value in flags.items() if value)]
    if losses is None and asked:
        option = asked[0].replace("_", "-")
        raise UserError(f"--{option} is about a loss matrix: give --losses FILE too, or leave it out")
    if losses is None:
        raise UserError(f"bounds needs --losses FILE; the checks of the bound are a study now: {THEOREM}")
    folder = out or Path("runs/bounds")
    check_writable("--out", folder)
    console = Console()
    tables = run_bounds(
        folder,
        losses=losses,
        transpose=transpose,
        fixed=fixed_before_data,
        seed=seed,
        warn=lambda hint: console.print(hint, markup=False, soft_wrap=True),
        **given,
    )
    _print_summary(console, tables["summary"])
    console.print(f"Written: {folder}", markup=False, soft_wrap=True)


def _print_summary(console: Console, summary: DataFrame) -> None:
    """Print what the bound says of each hypothesis, of many of those with the lowest."""
    shown = summary.nsmallest(_MOST_SHOWN, "bound") if len(summary) > _MOST_SHOWN else summary
    console.print(as_table(shown.drop(columns="sentence")))
    for hypothesis, sentence in zip(shown["hypothesis"], shown["sentence"], strict=True):
        console.print(f"Hypothesis {hypothesis}: {sentence}.", markup=False, soft_wrap=True)
    if len(summary) > _MOST_SHOWN:
        console.print(f"Of {len(summary)} hypotheses those with the lowest bounds; all are in summary.csv.")
