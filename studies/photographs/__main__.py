"""`python -m studies.photographs`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from steelyard.cli.options import check_seeds, check_writable, data_root_of, set_threads
from studies._command import command_line
from studies.photographs.finders import report as finders_report
from studies.photographs.images import Images
from studies.photographs.place import report as place_report
from studies.photographs.report import report
from studies.photographs.search import Search
from studies.photographs.sets import Sets, Source, shares_of, source, tables_of
from studies.photographs.table import Job, carry_out_all, read, rows_named

__all__ = ["main"]


def photographs(
    task: tyro.conf.Positional[Literal["make", "place", "finders", "table", "tabulate"]],
    name: Literal["waterbirds", "hard", "celeba", "images", "adult", "compas"] = "waterbirds",
    folder: Path = Path("runs/photographs/sets"),
    runs: Path = Path("runs/photographs/table"),
    out: Path | None = None,
    seeds: tuple[int, ...] = (101, 102, 103),
    tuned_on: int = 100,
    trials: int = 16,
    steps: int = 600,
    shares: tuple[float, ...] | None = None,
    rows: tuple[str, ...] = (),
    jobs: int = 1,
    data_root: Path | None = None,
    threads: int = 1,
) -> None:
    """Waterbirds' layout made of CIFAR-10's photographs, and every method on it, tuned alike.

    make: write the sets of the seeds with their features. place: what a net knows of the object that sees only the
    place. finders: how much of the minorities is found without labels of groups. table: tune every row on one data
    seed, measure it on the others, and tabulate. tabulate: only the tables of what is there. Stopped and started again
    it resumes: what is filed is left alone.

    Args:
        task: what to do.
        name: the set: "waterbirds", automobile against frog; "hard", bird against automobile; "celeba", in its layout;
            "images", the whole images of the first under a small net; and for tables of people "adult" or "compas".
        folder: of the sets.
        runs: of the rows' trials and figures.
        out: of the tables (default: results/photographs, of other sets than "waterbirds" a folder in it, and of
            people's tables results/adult/tuned and results/compas/tuned).
        seeds: the data seeds of the figures.
        tuned_on: the data seed of the search.
        trials: settings of each row; with 1 the recipe's own, and no search.
        steps: of each training by the one trainer.
        shares: of the training labels that are flipped, a table for each (default: 0 and 0.2;
            of celeba, adult and compas 0 alone).
        rows: titles of the rows to carry out; all of them if none is named.
        jobs: processes.
        data_root: where cifar10/{train,test}/CLASS lies (default: $STEELYARD_DATA).
        threads: torch threads of each process. 0 leaves torch's own choice.
    """
    set_threads(threads)
    out = tables_of(name) if out is None else out
    check_seeds("--seeds", seeds)
    check_seeds("--tuned-on", [tuned_on])
    check_writable("--out", out)
    console = Console()

    def told(said: str) -> None:
        console.print(said, markup=False, soft_wrap=True)

    root = data_root_of(data_root)
    sets = [_source(folder, name, share, root) for share in (shares_of(name) if shares is None else shares)]
    if task in ("make", "table"):
        for one in sets:
            for seed in (tuned_on, *seeds) if task == "table" and trials > 1 else seeds:
                one.make(seed, told)
    if task == "place":
        place_report(Sets(folder, name, 0.0, root), seeds[0], out, told)
    if task == "finders":
        finders_report(sets, seeds, out, told)
    if task in ("table", "tabulate"):
        search = Search(trials, tuned_on, seeds, steps)
        planned = [Job(row, one, search, runs) for one in sets for row in rows_named(rows, name)]
        if task == "table":
            carry_out_all(planned, jobs, told)
        everything = [[Job(row, one, search, runs) for row in rows_named((), name)] for one in sets]
        report(out, sets, [read(own) for own in everything])
    told(f"Written: {out if task != 'make' else folder}")


def _source(folder: Path, name: str, share: float, data_root: Path | None) -> Source:
    if name == "images":
        return Images(Sets(folder, "waterbirds", share, data_root))
    return source(folder, name, share, data_root)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study with the options given and return the exit status."""
    return command_line(photographs, "photographs", arguments)


if __name__ == "__main__":
    sys.exit(main())
