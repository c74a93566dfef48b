"""`python -m studies.data_cleaning`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from steelyard.cli.options import check_seeds, check_writable, data_root_of, set_threads
from studies._command import command_line
from studies.data_cleaning.problem import SHARES
from studies.data_cleaning.study import METHODS, study

__all__ = ["main"]


def data_cleaning(
    out: Path = Path("results/data_cleaning"),
    runs: Path = Path("runs/data_cleaning"),
    methods: tuple[str, ...] = tuple(METHODS),
    seeds: tuple[int, ...] = (101, 102, 103, 104, 105),
    shares: tuple[float, ...] = SHARES,
    tabulate: bool = False,
    data_root: Path | None = None,
    threads: int = 1,
) -> None:
    """Learn weights for MNIST with wrong labels from 5,000 clean images, and train softmax regression on them.

    Stopped and started again it resumes: what was carried out is read.

    Args:
        out: folder for the tables.
        runs: folder of a file for each method, share of wrong labels and seed.
        methods: which to carry out: "net" (a function of a net's loss), "scaled" (that, by its largest weight),
            "function" (of the model's own loss), "oracles", "sample" (a weight a sample), "maple" (the same by Maple),
            "all" (samples alike), "reference" (the net itself).
        seeds: of every method.
        shares: of the labels that are drawn again: 0.5, 0.7, 0.9.
        tabulate: only make the tables of what is there.
        data_root: where MNIST lies (default: $STEELYARD_DATA).
        threads: torch threads. 0 leaves torch's own choice.
    """
    set_threads(threads)
    check_seeds("--seeds", seeds)
    check_writable("--out", out)
    console = Console()

    def told(said: str) -> None:
        console.print(said, markup=False)

    study(out, runs, () if tabulate else methods, seeds, data_root_of(data_root), told, shares)
    console.print(f"Written: {out}", markup=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study with the options given and return the exit status."""
    return command_line(data_cleaning, "data_cleaning", arguments)


if __name__ == "__main__":
    sys.exit(main())
