"""Carry out recipes, compare their runs, look at them."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from steelyard._support._files import is_link
from steelyard._support._outputs import writing
from steelyard._support._plain import plain
from steelyard._support._toml import toml_text
from steelyard.cli.jobs import carry_out, check_jobs, plan, together
from steelyard.cli.options import check_any_seed, data_root_of, every, seconds, set_threads
from steelyard.cli.shared import Overrides, progress_bars, read_runs, watcher
from steelyard.distributed import launched
from steelyard.experiments.compare.known_groups import KNOWN_GROUPS, known_table, write_known
from steelyard.experiments.compare.rows import compare
from steelyard.experiments.compare.tables import FILES, write_comparison
from steelyard.experiments.compare.terminal import show_comparison, show_whole
from steelyard.experiments.errors import UserError
from steelyard.experiments.runs.demo import DEMO, LIST
from steelyard.experiments.runs.demo import demo as run_demo
from steelyard.experiments.runs.folder import check_place
from steelyard.experiments.runs.jobs import Options
from steelyard.experiments.runs.recipe import load_recipe, recipe_names
from steelyard.experiments.runs.run import Run, check_directory
from steelyard.experiments.training.selection import KNOWN

__all__ = ["compare_runs", "demo", "recipes", "report", "run"]


def demo(
    out: Path = Path("runs/demo"), seeds: tuple[int, ...] = (0, 1, 2), threads: int = 1, show: bool = False
) -> None:
    """Show MAPLE beside ERM, IRMv1 and V-REx on coloured digits, offline, in a minute or two.

    Example: steelyard demo --show

    Args:
        out: folder for the runs and report.html; an earlier demo in it is replaced.
        seeds: one run of every method for each.
        threads: torch threads; these nets are small, more than one rarely helps. 0 leaves torch's own choice.
        show: open the report in a browser.
    """
    from steelyard.experiments.report.page import (
        write_report,  # matplotlib: two seconds that other commands need not wait
    )

    set_threads(threads)
    check_any_seed(seeds)
    console, page = Console(), out / "report.html"
    earlier = (out / LIST).is_file() or None
    with writing(out, [*FILES, page.name], overwrite=earlier):
        with progress_bars(console) as bars:
            watch = watcher(bars, len(DEMO) * len(seeds))
            runs = run_demo(out, watch, DEMO, seeds)
        rows = compare(runs)
        write_comparison(rows, out)
        write_report(runs, page)
    show_comparison(console, rows)
    console.print(f"Report: [bold]{page.resolve().as_uri()}[/bold]", soft_wrap=True)
    if show:
        webbrowser.open(page.resolve().as_uri())


def run(
    recipe: tyro.conf.Positional[str],
    more: tyro.conf.Positional[tuple[str, ...]] = (),
    set_: Overrides = (),
    seeds: tuple[int, ...] = (),
    jobs: int = 1,
    out: Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    checkpoint_every: int = 200,
    data_root: Path | None = None,
    download: bool = False,
    threads: int = 0,
    rank_timeout: float | None = None,
    allow_code: bool = False,
) -> None:
    """Carry out recipes, a run directory for each seed.

    A run that fails does not stop the others; the exit status then is 2. Started by torchrun, the processes carry out
    each run together, each with its share of the samples.

    For instance:

    steelyard run coloured_digits/maple --seeds 0 1 2

    steelyard run coloured_digits/erm coloured_digits/vrex --seeds 0 1 2 --jobs 4

    torchrun --nproc-per-node 2 -m steelyard run coloured_digits/maple

    steelyard run coloured_digits/irmv1 --set method.penalty.weight=1e3 --set method.training.steps=100

    steelyard run my_recipe.toml --out runs/mine

    Args:
        recipe: a name from `steelyard recipes`, or the path of a .toml file.
        more: further recipes.
        set_: a field of the recipes to set, as in --set method.training.steps=20; may be repeated.
        seeds: seeds to run; the recipe's own if none is given.
        jobs: runs beside each other, each in a process.
        out: folder; runs go to OUT/seed<k>, of several recipes to OUT/<recipe>/seed<k> (default: in runs/<recipe>).
        overwrite: replace runs that lie there.
        resume: continue runs that ended early, leave finished ones alone, begin missing ones.
        checkpoint_every: optimizer steps between two checkpoints (a MAPLE step counts as its inner runs' steps).
        data_root: where data sets lie (default: $STEELYARD_DATA).
        download: let the data set be downloaded to the data root.
        threads: torch threads of each run; 0 leaves torch's own choice, shared out among the --jobs.
        rank_timeout: seconds that one of several processes waits for another that is silent (default: torch's own, 30
            minutes, with GPUs 10); more where the first takes longer to load the data.
        allow_code: let code run that the recipe names as "module:function" (data sets and backbones of your own).
    """
    set_threads(threads)
    steps, waiting, jobs = every(checkpoint_every), seconds("--rank-timeout", rank_timeout), check_jobs(jobs)
    planned = plan([recipe, *more], set_, seeds, out)
    above = Path("runs") if out is None else out.parent
    options = Options(data_root_of(data_root), download, overwrite, resume, steps, allow_code)

    def check() -> None:
        for one in planned:  # all of them before the first hour of training, not after it
            check_place(one.directory, below=above)
            check_directory(one.directory, overwrite, resume)

    with launched(planned[0].recipe.device, waiting) as ranks:
        console = Console(quiet=ranks.rank > 0)
        if ranks.size > 1:
            ranks.agree(
                "steelyard run", {"the recipe": [recipe, *more], "--seeds": [one.recipe.seed for one in planned]}
            )
            ranks.together(lambda: check() if ranks.rank == 0 else None)
            if jobs > 1:
                raise UserError("--jobs makes processes of its own; start it without torchrun")
            runs = together(console, planned, options, ranks)
        else:
            check()
            runs = carry_out(console, planned, options, jobs, threads)
    show_comparison(console, compare(runs))
    for note in dict.fromkeys(note for one in runs for note in one.environment.get("notes", ())):
        console.print(f"Data: {note}", markup=False, highlight=False)
    console.print(f"Runs: {' '.join(str(one.directory) for one in planned)}", markup=False, soft_wrap=True)


def compare_runs(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    out: Path | None = None,
    groups: Literal["recipe", "training", "validation", "nowhere", "each"] = "recipe",
    overwrite: bool = False,
) -> None:
    """Compare runs: accuracies as mean ± standard deviation over seeds.

    Example: steelyard compare runs/coloured_digits/*/seed* --out results/coloured_digits

    Args:
        runs: run directories; those of one recipe are averaged over their seeds.
        out: write comparison.md, .csv and .tex, summary.json and, for each data set, its bars and curves here.
        groups: also a table of the methods that may be used where groups are known in training, in validation or
            nowhere, at the step chosen by what is known, as `steelyard tune --groups` does; each: the three of them
            (with --out in known_groups.md). recipe: no such table.
        overwrite: replace what lies there.
    """
    done = read_runs(runs, samples=False)
    which = {"recipe": (), "each": tuple(KNOWN)}.get(groups, (groups,))
    with ExitStack() as held:
        if out is not None:
            from steelyard.experiments.compare.plot_files import plot_names

            names = [*FILES, *plot_names(done), *[KNOWN_GROUPS] * bool(which)]
            held.enter_context(writing(out, names, overwrite=overwrite))
        _compare(done, out, which)


def _compare(done: Sequence[Run], out: Path | None, which: Sequence[str]) -> None:
    """Show what was read, and write it into `out`, which is held."""
    rows = compare(done)
    console = Console()
    show_comparison(console, rows)
    for known in which:
        table = known_table(done, known)
        show_whole(console, table.terminal())
        for note in table.notes:
            console.print(note, markup=False, highlight=False)
    if out is not None:
        from steelyard.experiments.compare.plot_files import write_plots

        write_comparison(rows, out)
        names = [*FILES, *write_plots(done, out)]
        if which:
            write_known(done, out, which)
            names.append(KNOWN_GROUPS)
        console.print(f"Written: {out}/{', '.join(names)}", markup=False, soft_wrap=True)


def report(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    out: Path | None = None,
    data_root: Path | None = None,
    show: bool = False,
    overwrite: bool = False,
) -> None:
    """Write an HTML page about one or several runs.

    Example: steelyard report runs/coloured_digits/*/seed* --out report.html --show

    Args:
        runs: run directories; those of one recipe are averaged over their seeds.
        out: the page (default: report.html beside the first run directory).
        data_root: where data sets lie, for the images (default: $STEELYARD_DATA).
        show: open the page in a browser.
        overwrite: replace the page that lies there.
    """
    from steelyard.experiments.report.page import write_report

    if data_root is not None and not data_root.is_dir():
        raise UserError(f"--data-root {data_root} is not a folder; leave it out to go without images")
    done = read_runs(runs)
    page = out or runs[0].parent / "report.html"
    folder = page.parent.resolve() if is_link(page.parent) else page.parent  # what was named is the page
    with writing(folder, [page.name], overwrite=overwrite):
        write_report(done, page, data_root_of(data_root))
    Console().print(f"Report: [bold]{page.resolve().as_uri()}[/bold]", soft_wrap=True)
    if show:
        webbrowser.open(page.resolve().as_uri())


def recipes(show: str | None = None) -> None:
    """List the recipes that come with the package, or show one with its base and defaults.

    For instance:

    steelyard recipes

    steelyard recipes --show coloured_digits/maple

    Args:
        show: a recipe's name, or the path of a .toml file; it is printed as TOML, which is a recipe again.
    """
    from steelyard.experiments.active.recipe import active_recipe_names, load_active_recipe

    console = Console()
    if show is not None:
        load = load_active_recipe if show in active_recipe_names() else load_recipe
        console.print(toml_text(plain(load(show))), markup=False, highlight=False, soft_wrap=True, end="")
        return
    for name in recipe_names():
        console.print(name)
    for name in active_recipe_names():
        console.print(f"{name} (for `steelyard active`)", highlight=False)
