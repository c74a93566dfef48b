"""`python -m studies.groups`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from steelyard.cli.options import check_seeds, check_writable, data_root_of, set_threads
from studies._command import command_line
from studies.groups.case import CASES, TRAINED
from studies.groups.tables import study

__all__ = ["main"]


def groups(
    out: Path = Path("results/groups"),
    runs: Path = Path("runs/groups"),
    cases: tuple[str, ...] = tuple(CASES),
    seeds: tuple[int, ...] = (101, 102, 103, 104, 105),
    methods: tuple[str, ...] = TRAINED,
    photographs: Path = Path("runs/photographs/sets"),
    tabulate: bool = False,
    data_root: Path | None = None,
    threads: int = 1,
) -> None:
    """Find the groups in MAPLE's keep-probabilities, and train on what follows.

    Stopped and started again it resumes: cases that were carried out are read.

    Args:
        out: folder for the tables.
        runs: folder of a file for each case and seed.
        cases: which to carry out, by name; COMPAS, Adult and MNIST need their files below the data root.
        seeds: of every case.
        methods: what nets are trained on. Others can be carried out later.
        photographs: folder of the sets that ``python -m studies.photographs make`` writes.
        tabulate: only make the tables of what is there.
        data_root: where data sets lie (default: $STEELYARD_DATA).
        threads: torch threads. 0 leaves torch's own choice.
    """
    set_threads(threads)
    check_seeds("--seeds", seeds)
    check_writable("--out", out)
    console = Console()
    study(
        out,
        runs,
        () if tabulate else cases,
        seeds,
        data_root_of(data_root),
        methods,
        photographs,
        lambda said: console.print(said, markup=False),
    )
    console.print(f"Written: {out}", markup=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study with the options given and return the exit status."""
    return command_line(groups, "groups", arguments)


if __name__ == "__main__":
    sys.exit(main())
