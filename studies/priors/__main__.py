"""`python -m studies.priors`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from steelyard.cli.options import check_seeds, check_writable, data_root_of, set_threads
from studies._command import command_line
from studies.priors import study

__all__ = ["main"]


def priors(
    out: Path = Path("results/priors"),
    runs: Path = Path("runs/priors"),
    parts: tuple[str, ...] = ("main", "noise", "ablation", "scores"),
    seeds: tuple[int, ...] = (5, 6, 7, 8, 9),
    tabulate: bool = False,
    data_root: Path | None = None,
    threads: int = 1,
) -> None:
    """Compare MAPLE with and without priors on coloured digits whose labels are corrupted.

    Stopped and started again it goes on where it was: runs that are complete are read.

    Args:
        out: folder for the tables and plots.
        runs: folder of the run directories.
        parts: which parts to run; mnist needs MNIST below the data root.
        seeds: of the main, noise and mnist parts; ablation and scores take the first two.
        tabulate: only make the tables of the runs that are there; scores.md and scores.csv have none and stay.
        data_root: where data sets lie (default: $STEELYARD_DATA).
        threads: torch threads; more than one is slower here. 0 leaves torch's own choice.
    """
    set_threads(threads)
    check_seeds("--seeds", seeds)
    check_writable("--out", out)
    console = Console()
    with console.status("") as status:
        study.priors(
            out,
            runs,
            parts=parts,
            seeds=seeds,
            complete=not tabulate,
            data_root=data_root_of(data_root),
            watch=lambda cell: status.update(escape(str(cell.place))),
        )
    console.print(f"Written: {out}", markup=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study with the options given and return the exit status."""
    return command_line(priors, "priors", arguments)


if __name__ == "__main__":
    sys.exit(main())
