"""The command `steelyard`: run recipes, compare runs, look at them."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from pandas import DataFrame
from rich import box
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

import steelyard
from steelyard._signals import noted_signals
from steelyard.distributed import RankError, launched, launched_processes
from steelyard.experiments.compare import compare
from steelyard.experiments.demo import DEMO
from steelyard.experiments.demo import demo as run_demo
from steelyard.experiments.errors import UserError
from steelyard.experiments.evaluation import Evaluation
from steelyard.experiments.printed import show_comparison
from steelyard.experiments.recipe import load_recipe, recipe_names
from steelyard.experiments.run import Run, check_directory, execute, read_run
from steelyard.experiments.tables import FILES, write_comparison
from steelyard.journal import Stopped

__all__ = ["main"]

Overrides = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="set", metavar="FIELD=VALUE")]


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
    from steelyard.experiments.report import write_report  # matplotlib: two seconds that other commands need not wait

    _set_threads(threads)
    seeds = tuple(dict.fromkeys(seeds))
    if not seeds:
        raise UserError("--seeds needs at least one seed, as in --seeds 0 1 2")
    console = Console()
    with _progress(console) as bars:
        watch = _watcher(bars, len(DEMO) * len(seeds))
        runs = run_demo(out, watch, DEMO, seeds)
    rows = compare(runs)
    write_comparison(rows, out)
    page = out / "report.html"
    write_report(runs, page)
    show_comparison(console, rows)
    console.print(f"Report: [bold]{page.resolve().as_uri()}[/bold]", soft_wrap=True)
    if show:
        webbrowser.open(page.resolve().as_uri())


def run(
    recipe: tyro.conf.Positional[str],
    set_: Overrides = (),
    seeds: tuple[int, ...] = (),
    out: Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    checkpoint_every: int = 200,
    data_root: Path | None = None,
    download: bool = False,
    threads: int = 0,
) -> None:
    """Carry out a recipe, a run directory for each seed.

    Started by torchrun, the processes carry out each run together, each with its share of the samples.

    For instance:

    steelyard run coloured_digits/maple --seeds 0 1 2

    torchrun --nproc-per-node 2 -m steelyard run coloured_digits/maple

    steelyard run coloured_digits/irmv1 --set method.penalty.weight=1e3 --set method.training.steps=100

    steelyard run my_recipe.toml --out runs/mine

    Args:
        recipe: a name from `steelyard recipes`, or the path of a .toml file.
        set_: a field of the recipe to set, as in --set method.training.steps=20; may be repeated.
        seeds: seeds to run; the recipe's own if none is given.
        out: folder; runs go to OUT/seed<k> (default: runs/<recipe>).
        overwrite: replace runs that lie there.
        resume: go on with runs that ended early, leave finished ones alone, begin missing ones.
        checkpoint_every: optimizer steps between two checkpoints (a MAPLE step counts as its inner runs' steps).
        data_root: where data sets lie (default: $STEELYARD_DATA).
        download: let the data set be downloaded to the data root.
        threads: torch threads; 0 leaves torch's own choice.
    """
    _set_threads(threads)
    recipes = [load_recipe(recipe, set_, seed) for seed in (dict.fromkeys(seeds) or (None,))]
    folder = out or Path("runs") / (Path(recipe).stem if recipe.endswith(".toml") else recipe)
    places = [folder / f"seed{one.seed}" for one in recipes]

    def check() -> None:
        for place in places:  # all of them before the first hour of training, not after it
            check_directory(place, overwrite, resume)

    runs = []
    with launched(recipes[0].device) as ranks:
        console = Console(quiet=ranks.rank > 0)
        ranks.together(lambda: check() if ranks.rank == 0 else None)
        with _progress(console) as bars, _stoppable(bars) as stop:
            watch = _watcher(bars, len(recipes))
            for one, place in zip(recipes, places, strict=True):

                def progress(evaluation: Evaluation, seed: int = one.seed, last: int = one.method.last_step) -> None:
                    watch(recipe, seed, evaluation, last)

                runs.append(
                    execute(
                        one,
                        place,
                        name=recipe,
                        overrides=set_,
                        data_root=_data_root(data_root),
                        download=download,
                        overwrite=overwrite,
                        resume=resume,
                        checkpoint_every=_every(checkpoint_every),
                        progress=progress,
                        stop=stop,
                        ranks=ranks,
                    )
                )
    show_comparison(console, compare(runs))
    console.print(f"Runs: {' '.join(str(place) for place in places)}", markup=False, soft_wrap=True)


def compare_runs(runs: tyro.conf.Positional[tuple[Path, ...]], out: Path | None = None) -> None:
    """Compare runs: accuracies as mean ± standard deviation over seeds.

    Example: steelyard compare runs/coloured_digits/*/seed* --out results/coloured_digits

    Args:
        runs: run directories; those of one recipe are averaged over their seeds.
        out: write comparison.md, .csv and .tex, summary.json and, for each data set, its bars and curves here.
    """
    done = _read(runs)
    rows = compare(done)
    console = Console()
    show_comparison(console, rows)
    if out is not None:
        from steelyard.experiments.compare_plots import write_plots

        write_comparison(rows, out)
        names = [*FILES, *write_plots(done, out)]
        console.print(f"Written: {out}/{', '.join(names)}", markup=False, soft_wrap=True)


def report(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    out: Path | None = None,
    data_root: Path | None = None,
    show: bool = False,
) -> None:
    """Write an HTML page about one or several runs.

    Example: steelyard report runs/coloured_digits/*/seed* --out report.html --show

    Args:
        runs: run directories; those of one recipe are averaged over their seeds.
        out: the page (default: report.html beside the first run directory).
        data_root: where data sets lie, for the images (default: $STEELYARD_DATA).
        show: open the page in a browser.
    """
    from steelyard.experiments.report import write_report

    done = _read(runs)
    page = out or runs[0].parent / "report.html"
    write_report(done, page, _data_root(data_root))
    Console().print(f"Report: [bold]{page.resolve().as_uri()}[/bold]", soft_wrap=True)
    if show:
        webbrowser.open(page.resolve().as_uri())


def recipes() -> None:
    """List the recipes that come with the package."""
    from steelyard.experiments.active.recipe import active_recipe_names

    console = Console()
    for name in recipe_names():
        console.print(name)
    for name in active_recipe_names():
        console.print(f"{name} (for `steelyard active`)", highlight=False)


def bounds(
    out: Path = Path("results/theory"),
    losses: Path | None = None,
    clean: Path | None = None,
    s: int = 16,
    q: int = 4,
    delta: float = 0.05,
    loss_range: float | None = None,
    draws: int = 1000,
    quick: bool = False,
    seed: int = 0,
    threads: int = 1,
) -> None:
    """Check the top-q generalisation bound term by term, or compute its terms for a loss matrix of your own.

    For instance:

    steelyard bounds --quick --out /tmp/theory

    steelyard bounds --losses losses.npy --s 64 --q 16 --loss-range 1.0 --out runs/bounds

    Args:
        out: folder for the tables, the plots and README.md.
        losses: losses (hypotheses x samples) on the data as trained on, .npy or Parquet; then only its terms.
        clean: the same for the clean data, where it is known.
        s: batch size.
        q: how many of the largest losses of a batch count.
        delta: the bound fails with at most this probability.
        loss_range: M, the largest possible loss.
        draws: Monte Carlo draws.
        quick: smaller experiments, for a look.
        seed: of all random draws.
        threads: torch threads; more than one is slower here. 0 leaves torch's own choice.
    """
    from steelyard.experiments.bounds import bounds as run_bounds

    _set_threads(threads)
    tables = run_bounds(
        out,
        quick=quick,
        losses=losses,
        clean=clean,
        s=s,
        q=q,
        delta=delta,
        loss_range=loss_range,
        draws=draws,
        seed=seed,
    )
    console = Console()
    if losses is not None:
        console.print(_frame(tables["terms"]))
    console.print(f"Written: {out}", markup=False, soft_wrap=True)


def active(
    recipe: tyro.conf.Positional[str],
    set_: Overrides = (),
    seeds: tuple[int, ...] = (),
    selectors: tuple[str, ...] = (),
    noises: tuple[str, ...] = (),
    fine_tuning: Literal["recipe", "off", "on", "both"] = "recipe",
    out: Path | None = None,
    tables: Path | None = None,
    resume: bool = False,
    checkpoint_every: int = 200,
    overwrite: bool = False,
    data_root: Path | None = None,
    download: bool = False,
    threads: int = 1,
) -> None:
    """Carry out an active learning recipe: label, train, select, round after round.

    For instance:

    steelyard active four_moons --selectors conf lhd --seeds 0 1 2

    steelyard active digits --selectors rand conf lhd --noises noisy_blank noisy_class --fine-tuning both

    Args:
        recipe: a name from `steelyard recipes`, or the path of a .toml file.
        set_: a field of the recipe to set, as in --set schedule.rounds=3; may be repeated.
        seeds: seeds to run; the recipe's own if none is given.
        selectors: who picks, a run for each; the recipe's own if none is given.
        noises: kinds of noise by name, a run for each; the recipe's own if none is given.
        fine_tuning: whether rounds end with fine-tuning: as the recipe says, off, on, or a run each way.
        out: folder; runs go to OUT/<noise>/<selector>[_ft]/seed<k> (default: runs/active/<recipe>).
        tables: folder for README.md, rounds.csv, summary.json and pictures (default: OUT).
        resume: go on with runs that were interrupted, after their last checkpoint; finished ones are kept.
        checkpoint_every: optimizer steps between two checkpoints, which come after whole epochs.
        overwrite: replace runs that lie there.
        data_root: where data sets lie (default: $STEELYARD_DATA).
        download: let the data set be downloaded to the data root.
        threads: torch threads; small nets gain nothing from more than one. 0 leaves torch's own choice.
    """
    from steelyard.experiments.active.grid import Grid  # torchvision and matplotlib: seconds

    _set_threads(threads)
    console = Console()
    folder = out or Path("runs") / "active" / Path(recipe).stem
    grid = Grid.of(recipe, set_, folder, seeds=seeds, selectors=selectors, noises=noises, fine_tuning=fine_tuning)
    grid.check(overwrite=overwrite, resume=resume)
    with _progress(console) as bars, _stoppable(bars) as stop:
        bar = bars.add_task("starting", total=grid.rounds)
        written = grid.execute(
            tables or folder,
            data_root=_data_root(data_root),
            download=download,
            overwrite=overwrite,
            resume=resume,
            checkpoint_every=_every(checkpoint_every),
            progress=lambda done, text: bars.update(bar, completed=done, description=text),
            stop=stop,
        )
    for title, table in grid.results():
        console.print(Markdown(f"**{title}**\n\n{table}"))
    console.print(f"Written: {tables or folder}/{', '.join(written)}", markup=False, soft_wrap=True)


def disagreement(
    out: Path = Path("results/active/dr_is"),
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    sizes: tuple[int, ...] = (2, 4, 8, 16, 32, 64),
    share: float = 0.2,
    threads: int = 1,
) -> None:
    """Measure DR-IS, EL2N and AUM on digits whose labels an adversary has corrupted.

    Example: steelyard disagreement --seeds 0 --sizes 2 8 --out /tmp/dr_is

    Args:
        out: folder for the tables, the picture and README.md.
        seeds: of split, attack and proxies.
        sizes: numbers of proxies.
        share: of the training labels that are corrupted.
        threads: torch threads; these nets are small, more than one rarely helps. 0 leaves torch's own choice.
    """
    from steelyard.experiments.disagreement import DisagreementSettings
    from steelyard.experiments.disagreement_report import disagreement as measure

    _set_threads(threads)
    words = [f"steelyard disagreement --out {out.as_posix()} --seeds {' '.join(map(str, seeds))}"]
    words += [f"--sizes {' '.join(map(str, sizes))} --share {share:g}"]
    try:
        settings = DisagreementSettings(seeds=seeds, sizes=sizes, share=share)
    except ValueError as error:
        raise UserError(str(error)) from error
    console = Console()
    with console.status("starting") as status:
        written = measure(out, settings, " ".join(words), status.update)
    console.print(f"Written: {out}/{', '.join(written)}", markup=False, soft_wrap=True)


def robust(
    out: Path = Path("results/active/robust"),
    runs: Path = Path("runs/robust"),
    seeds: tuple[int, ...] = (0, 1, 2),
    selectors: tuple[str, ...] = (),
    set_: Overrides = (),
    library: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    threads: int = 1,
) -> None:
    """Robust active learning on digits: with and without adversarial training, and test selection for retraining.

    Example: steelyard robust --selectors rand ent dre --seeds 0 --out /tmp/robust --runs /tmp/robust/runs

    Args:
        out: folder for README.md, the tables and the picture.
        runs: folder for the runs, RUNS/<task>/none/<selector>/seed<k>.
        seeds: a run of every task and selector for each.
        selectors: who picks; rand, ent and dre must be among them (default: the paper's eleven and dre).
        set_: a field to set in all recipes, as in --set schedule.rounds=1; may be repeated.
        library: attack final models with the attack library too (the extra `attacks`).
        resume: go on with runs that were interrupted; finished ones are kept.
        overwrite: replace runs that lie there.
        threads: torch threads; small nets gain nothing from more than one. 0 leaves torch's own choice.
    """
    from steelyard.experiments.active.robust import ELEVEN
    from steelyard.experiments.active.robust import robust as run_robust

    _set_threads(threads)
    chosen = selectors or (*ELEVEN, "dre")
    if missing := [name for name in ("rand", "ent", "dre") if name not in chosen]:
        raise UserError(f"--selectors needs {missing[0]!r}: the claims compare rand, ent and dre")
    words = ["steelyard", "robust", "--out", out.as_posix(), "--seeds", *map(str, seeds)]
    words += ["--selectors", *selectors] if selectors else []
    words += [word for field in set_ for word in ("--set", field)] + (["--library"] if library else [])
    console = Console()
    with _progress(console) as bars, _stoppable(bars) as stop:
        bar = bars.add_task("starting", total=1)
        written = run_robust(
            out,
            runs,
            seeds=seeds,
            selectors=chosen,
            overrides=set_,
            library=library,
            overwrite=overwrite,
            resume=resume,
            command=" ".join(words),
            progress=lambda done, total, text: bars.update(bar, completed=done, total=total, description=text),
            stop=stop,
        )
    console.print(f"Written: {out}/{', '.join(written)}", markup=False, soft_wrap=True)


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
        seeds: of the main and noise parts; the others take the first two.
        tabulate: only make the tables of the runs that are there.
        data_root: where data sets lie (default: $STEELYARD_DATA).
        threads: torch threads; more than one is slower here. 0 leaves torch's own choice.
    """
    from steelyard.experiments.prior_benchmark import priors as run_priors

    _set_threads(threads)
    console = Console()
    with console.status("") as status:
        run_priors(
            out,
            runs,
            parts=parts,
            seeds=seeds,
            complete=not tabulate,
            data_root=_data_root(data_root),
            watch=lambda cell: status.update(escape(str(cell.place))),
        )
    console.print(f"Written: {out}", markup=False, soft_wrap=True)


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "run": run,
    "compare": compare_runs,
    "report": report,
    "recipes": recipes,
    "active": active,
    "bounds": bounds,
    "disagreement": disagreement,
    "robust": robust,
    "priors": priors,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (default: that of the process) and return the exit status.

    0: done. 1: another process of the same run failed or ended. 2: something the user gave is wrong, said in one line.
    130: interrupted. 143: terminated.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == ["--version"]:
        Console().print(f"steelyard {steelyard.__version__}", highlight=False)
        return 0
    try:
        if launched_processes() > 1 and given[:1] != ["run"]:
            raise UserError("of the commands only `run` is carried out by several processes; start this one by itself")
        tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="steelyard", description=_DESCRIPTION, args=given)
    except UserError as error:
        return _fail(str(error))
    except RankError as error:
        return _fail(str(error), 1)
    except OSError as error:  # a folder that cannot be written, a disk that is full
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except Stopped as stopped:
        again = shlex.join(["steelyard", *(a for a in given if a not in ("--overwrite", "--resume")), "--resume"])
        if launched_processes() > 1:
            if os.environ.get("RANK") != "0":
                return 128 + stopped.reason  # the first says it for all
            again = f"torchrun ... -m {again}"
        said = f"steelyard: stopped by {signal.Signals(stopped.reason).name} after a whole step; go on with: {again}"
        Console(stderr=True).print(said, markup=False, highlight=False, soft_wrap=True)
        return 128 + stopped.reason
    except KeyboardInterrupt:
        Console(stderr=True).print("steelyard: interrupted")
        return 130
    return 0


def _fail(message: str, status: int = 2) -> int:
    """Say in one line what is wrong and return the exit status."""
    line = " ".join(message.split())
    Console(stderr=True).print(f"steelyard: error: {line}", markup=False, highlight=False, soft_wrap=True)
    return status


_DESCRIPTION = """Bilevel sample reweighting: learn a weight and a keep-probability for every training sample.

Begin with `steelyard demo`. `steelyard recipes` lists what can be run; `steelyard COMMAND --help` explains one,
`steelyard --version` says which version this is."""


def _every(steps: int) -> int:
    if steps < 1:
        raise UserError(f"--checkpoint-every must be at least 1, got {steps}")
    return steps


def _stoppable(bars: Progress) -> AbstractContextManager[Callable[[], int]]:
    return noted_signals(lambda: bars.console.print("Finishing the step ..."))


def _set_threads(threads: int) -> None:
    if threads < 0:
        raise UserError(f"--threads must be 0 (torch's own choice) or more, got {threads}")
    if threads:
        torch.set_num_threads(threads)


def _read(runs: tuple[Path, ...]) -> list[Run]:
    """Read the run directories; one that is named twice, as patterns that overlap do, is read once."""
    if not runs:
        raise UserError("name at least one run directory")
    return [read_run(place) for place in {place.resolve(): place for place in runs}.values()]


def _data_root(given: Path | None) -> Path | None:
    named = os.environ.get("STEELYARD_DATA")
    return given or (Path(named) if named else None)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _watcher(bars: Progress, runs: int) -> Callable[[str, int, Evaluation, int], None]:
    """Return a callback that moves one bar over all `runs` and says what the present one has reached."""
    bar = bars.add_task("starting", total=runs)
    finished = 0

    def watch(name: str, seed: int, evaluation: Evaluation, last: int) -> None:
        nonlocal finished
        step = evaluation.visible.step
        text = (
            f"{name} seed {seed}, step {step}/{last}: train {evaluation.visible.train.accuracy:.3f}, "
            f"validation {evaluation.visible.validation.accuracy:.3f}"
        )
        bars.update(bar, completed=finished + step / last, description=text)
        finished += step == last

    return watch


def _frame(frame: DataFrame) -> Table:
    """Return a data frame as a table, numbers to four digits."""
    table = Table(*map(str, frame.columns), box=box.SIMPLE_HEAD, pad_edge=False)
    for row in frame.itertuples(index=False):
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else escape(str(cell)) for cell in row))
    return table
