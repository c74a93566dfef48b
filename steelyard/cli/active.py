"""Active learning: its recipes, rank disagreement, robust active learning."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.markdown import Markdown

from steelyard.cli.options import check_any_seed, check_seeds, check_writable, data_root_of, every, set_threads
from steelyard.cli.shared import Overrides, progress_bars, stoppable
from steelyard.experiments.errors import UserError

__all__ = ["active", "disagreement", "robust"]


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

    set_threads(threads)
    console = Console()
    folder = out or Path("runs") / "active" / Path(recipe).stem
    steps = every(checkpoint_every)
    check_writable("--out", folder)
    check_writable("--tables", tables or folder)
    grid = Grid.of(recipe, set_, folder, seeds=seeds, selectors=selectors, noises=noises, fine_tuning=fine_tuning)
    grid.check(overwrite=overwrite, resume=resume)
    with progress_bars(console) as bars, stoppable(bars) as stop:
        bar = bars.add_task("starting", total=grid.rounds)
        written = grid.execute(
            tables or folder,
            data_root=data_root_of(data_root),
            download=download,
            overwrite=overwrite,
            resume=resume,
            checkpoint_every=steps,
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

    set_threads(threads)
    check_seeds("--seeds", seeds)
    check_writable("--out", out)
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

    set_threads(threads)
    check_any_seed(seeds)
    check_writable("--out", out)
    check_writable("--runs", runs)
    chosen = selectors or (*ELEVEN, "dre")
    if missing := [name for name in ("rand", "ent", "dre") if name not in chosen]:
        raise UserError(f"--selectors needs {missing[0]!r}: the claims compare rand, ent and dre")
    words = ["steelyard", "robust", "--out", out.as_posix(), "--seeds", *map(str, seeds)]
    words += ["--selectors", *selectors] if selectors else []
    words += [word for field in set_ for word in ("--set", field)] + (["--library"] if library else [])
    console = Console()
    with progress_bars(console) as bars, stoppable(bars) as stop:
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
