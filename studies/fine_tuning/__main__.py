"""`python -m studies.fine_tuning`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro
from rich.console import Console

from steelyard.cli.options import check_any_seed, check_writable, data_root_of, every, set_threads
from steelyard.cli.shared import Overrides, progress_bars, stoppable
from studies._command import command_line
from studies.fine_tuning import page, study

__all__ = ["main"]


def fine_tuning(
    recipe: tyro.conf.Positional[str] = "digits",
    out: Path = Path("results/active/fine_tuning"),
    runs: Path = Path("runs/fine_tuning"),
    seeds: tuple[int, ...] = (101, 102, 103),
    selectors: tuple[str, ...] = study.SELECTORS,
    noises: tuple[str, ...] = study.NOISES,
    arms: tuple[study.Arm, ...] = study.ARMS,
    once: tuple[str, ...] = (),
    paired_seeds: int = 0,
    set_: Overrides = (),
    resume: bool = False,
    overwrite: bool = False,
    data_root: Path | None = None,
    checkpoint_every: int = 200,
    threads: int = 1,
) -> None:
    """Four ways to end a round of active learning, paired by seed: none, with labelled samples, the paper's, a control.

    Example: python -m studies.fine_tuning digits --selectors rand lhd --noises noisy_blank --seeds 0 1 --out /tmp/ft

    Args:
        recipe: an active learning recipe, by name or file.
        out: folder for README.md and the figures of every round.
        runs: folder for the runs, RUNS/<arm>/<noise>/<selector>[_ft]/seed<k>.
        seeds: a run of every arm, selector and noise for each.
        selectors: who picks.
        noises: kinds of noise.
        arms: ways to end a round that are run beside none; more_epochs is the control.
        once: more selectors, each run on the first seed alone.
        paired_seeds: arms beside none are run on so many of the seeds, the first ones (default: on all).
        set_: a field to set in all runs, as in --set schedule.rounds=1; may be repeated.
        resume: continue runs that were interrupted; finished ones are kept.
        overwrite: replace runs that lie there.
        data_root: where data sets lie (default: $STEELYARD_DATA).
        checkpoint_every: optimizer steps between two checkpoints.
        threads: torch threads; small nets gain nothing from more than one. 0 leaves torch's own choice.
    """
    set_threads(threads)
    check_any_seed(seeds)
    check_writable("--out", out)
    check_writable("--runs", runs)
    words = ["python", "-m", "studies.fine_tuning", recipe, "--seeds", *map(str, seeds)]
    words += ["--selectors", *selectors] if selectors != study.SELECTORS else []
    words += ["--noises", *noises] if noises != study.NOISES else []
    words += ["--arms", *arms] if arms != study.ARMS else []
    words += ["--once", *once] if once else []
    words += ["--paired-seeds", str(paired_seeds)] if paired_seeds else []
    words += [word for field in set_ for word in ("--set", field)]
    grids = study.plan(recipe, runs, seeds, selectors, noises, set_, arms, once, paired_seeds)
    for grid in grids.values():
        grid.check(overwrite=overwrite, resume=resume)
    console, results, before = Console(), {}, 0
    with progress_bars(console) as bars, stoppable(bars) as stop:
        bar = bars.add_task("starting", total=sum(grid.rounds for grid in grids.values()))
        for arm, grid in grids.items():

            def told(done: int, text: str, arm: str = arm, before: int = before) -> None:
                bars.update(bar, completed=before + done, description=f"{arm}: {text}")

            grid.execute(
                runs / arm,
                data_root=data_root_of(data_root),
                download=False,
                overwrite=overwrite,
                resume=resume,
                checkpoint_every=every(checkpoint_every),
                progress=told,
                stop=stop,
            )
            before += grid.rounds
            results[arm] = study.by_cell(grid.runs)
    written = page.write(results, out, shlex.join(words))
    console.print(f"Written: {out}/{', '.join(written)}", markup=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study with the options given and return the exit status."""
    return command_line(fine_tuning, "fine_tuning", arguments)


if __name__ == "__main__":
    sys.exit(main())
