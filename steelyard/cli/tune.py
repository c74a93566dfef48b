"""Tune a recipe by random search."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from steelyard._support._errors import UserError
from steelyard._support._outputs import writing
from steelyard.cli.jobs import bars_of_all, check_jobs
from steelyard.cli.options import check_seeds, check_writable, data_root_of, every, set_threads
from steelyard.cli.shared import Overrides, progress_bars, stoppable
from steelyard.experiments.compare.rows import compare
from steelyard.experiments.compare.terminal import show_comparison, show_whole
from steelyard.experiments.runs.folder import check_place
from steelyard.experiments.runs.jobs import Options, execute_all
from steelyard.experiments.runs.run import Run, check_directory
from steelyard.experiments.tuning.tuning import FILES, Tuning

__all__ = ["tune"]

Vary = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FIELD")]
Ranges = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="range", metavar="FIELD=RANGE")]

_MOST_TRIALS = 10_000


def tune(
    recipe: tyro.conf.Positional[str],
    set_: Overrides = (),
    trials: int = 16,
    seed: int = 0,
    seeds: tuple[int, ...] = (),
    groups: Literal["recipe", "training", "validation", "nowhere"] = "recipe",
    vary: Vary = (),
    ranges: Ranges = (),
    jobs: int = 1,
    out: Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    print_commands: bool = False,
    collect: bool = False,
    checkpoint_every: int = 200,
    data_root: Path | None = None,
    download: bool = False,
    threads: int = 0,
    allow_code: bool = False,
) -> None:
    """Tune a recipe: random search over the ranges that its method declares, the choice by validation alone.

    Trial 0 is the recipe as it stands. Written: a table of the trials, and the chosen recipe, for `steelyard run`.

    For instance:

    steelyard tune adult/group_dro --groups training --jobs 2 --data-root DATA

    steelyard tune coloured_digits/irmv1 --trials 8 --vary method.penalty.weight

    steelyard tune coloured_digits/erm --range 'method.training.l2=10^U(-5, -2)'

    steelyard tune mine.toml --print-commands > commands.txt    # for parallel, a Slurm array or Ray; then:

    steelyard tune mine.toml --collect

    Args:
        recipe: a name from `steelyard recipes`, or the path of a .toml file.
        set_: a field to set in every trial; it is then not drawn. May be repeated.
        trials: how many, trial 0 among them.
        seed: of the draws.
        seeds: of the runs of each trial; the recipe's own if none is given. Scores are averaged over them.
        groups: where groups are known: in training (and validation) or in validation: the worst group's accuracy there
            chooses; nowhere: the worst class's. recipe: the recipe's own selection.
        vary: a field to draw; only those named are. May be repeated.
        ranges: a range of your own: U(a, b), 10^U(a, b) or 2^U(a, b), with ", whole" behind it for whole numbers. May
            be repeated.
        jobs: runs beside each other, each in a process.
        out: folder; runs go to OUT/trial<k>/seed<s> (default: runs/tune/<recipe>).
        overwrite: replace runs that lie there.
        resume: continue runs that ended early, leave finished ones alone, begin missing ones.
        print_commands: carry nothing out; print a command for each trial.
        collect: carry nothing out; read the runs that are finished.
        checkpoint_every: optimizer steps between two checkpoints.
        data_root: where data sets lie (default: $STEELYARD_DATA).
        download: let the data set be downloaded to the data root.
        threads: torch threads of each run; 0 leaves torch's own choice, shared out among the --jobs.
        allow_code: let code run that the recipe names as "module:function" (data sets and backbones of your own).
    """
    set_threads(threads)
    jobs = check_jobs(jobs)
    check_seeds("--seed", [seed])
    check_seeds("--seeds", seeds)
    if not 1 <= trials <= _MOST_TRIALS:
        raise UserError(f"--trials must be 1 to {_MOST_TRIALS}, got {trials}")
    if sum((overwrite, print_commands, collect)) > 1:
        raise UserError("--overwrite, --print-commands and --collect exclude each other; give one of them")
    folder = out or Path("runs") / "tune" / (Path(recipe).stem if recipe.endswith(".toml") else recipe)
    search = {"count": trials, "seed": seed, "seeds": seeds, "groups": groups, "vary": vary, "ranges": ranges}
    tuning = Tuning.of(recipe, set_, folder, **search)  # type: ignore[arg-type]
    root = data_root_of(data_root)
    if print_commands:
        words = ["--checkpoint-every", str(checkpoint_every), *(["--data-root", str(root)] if root else [])]
        words += [*(["--download"] * download), *(["--threads", str(threads)] if threads else [])]
        words += ["--allow-code"] * allow_code
        sys.stdout.write("".join(f"{command}\n" for command in tuning.commands(*words)))
        return
    check_writable("--out", folder)
    console, planned = Console(), tuning.planned
    for one in planned:
        check_place(one.directory, below=folder.parent)
    begun = any(one.directory.is_dir() for one in planned)
    with writing(folder, FILES, overwrite=overwrite, resume=resume or collect, begun=begun):
        if collect:
            outcomes = tuning.collect()
        else:
            for one in planned:
                check_directory(one.directory, overwrite, resume)
            options = Options(root, download, overwrite, resume, every(checkpoint_every), allow_code)
            with progress_bars(console) as bars, stoppable(bars) as stop:
                watch = bars_of_all(bars, planned)
                outcomes = execute_all(planned, options, jobs=jobs, threads=threads, watch=watch, stop=stop)
        tuned = tuning.tuned(outcomes)
        places = tuned.write()
    show_whole(console, tuned.table.terminal(title=f"{recipe}: {len(tuning.trials)} trials by {tuning.selection}"))
    for note in tuned.table.notes:
        console.print(note, markup=False, highlight=False)
    first = tuned.chosen * len(tuning.seeds)
    console.print("The chosen trial, test figures included (they decided nothing):")
    chosen = outcomes[first : first + len(tuning.seeds)]
    show_comparison(console, compare([one for one in chosen if isinstance(one, Run)]))
    console.print(f"Written: {', '.join(map(str, places))}", markup=False, soft_wrap=True)
    console.print(f"To run it: steelyard run {places[-1]}", markup=False, soft_wrap=True)
