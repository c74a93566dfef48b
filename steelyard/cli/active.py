"""Active learning: carry out its recipes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.markdown import Markdown

from steelyard._support._outputs import writing
from steelyard.cli.options import check_seeds, check_writable, data_root_of, every, set_threads
from steelyard.cli.shared import Overrides, progress_bars, stoppable

__all__ = ["active", "grid_command"]


def grid_command(program: str, section: Callable[..., str] = lambda found: "") -> Callable[..., None]:
    """Return the command that carries out a recipe for some selectors, kinds of noise and seeds.

    Args:
        program: what it is called by.
        section: text that it adds to the README, see `steelyard.experiments.active.report.write_active_report`.
    """

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
        allow_code: bool = False,
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
            resume: continue runs that were interrupted, after their last checkpoint; finished ones are kept.
            checkpoint_every: optimizer steps between two checkpoints, which come after whole epochs.
            overwrite: replace runs that lie there.
            data_root: where data sets lie (default: $STEELYARD_DATA).
            download: let the data set be downloaded to the data root.
            allow_code: let code run that the recipe names as "module:function" (a frozen network of your own).
            threads: torch threads; small nets gain nothing from more than one. 0 leaves torch's own choice.
        """
        from steelyard.experiments.active.grid import Grid  # torchvision and matplotlib: seconds
        from steelyard.experiments.active.report import FILES

        set_threads(threads)
        check_seeds("--seeds", seeds)
        console = Console()
        folder = out or Path("runs") / "active" / Path(recipe).stem
        steps = every(checkpoint_every)
        check_writable("--out", folder)
        check_writable("--tables", tables or folder)
        grid = Grid.of(
            recipe,
            set_,
            folder,
            seeds=seeds,
            selectors=selectors,
            noises=noises,
            fine_tuning=fine_tuning,
            program=program,
        )
        grid.check(overwrite=overwrite, resume=resume)
        places = writing(tables or folder, FILES, overwrite=overwrite, resume=resume, begun=grid.begun)
        with places, progress_bars(console) as bars, stoppable(bars) as stop:
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
                section=section,
                allow_code=allow_code,
            )
        for title, table in grid.results():
            console.print(Markdown(f"**{title}**\n\n{table}"))
        console.print(f"Written: {tables or folder}/{', '.join(written)}", markup=False, soft_wrap=True)

    active.__doc__ = str(active.__doc__).replace("steelyard active", program)
    return active


active = grid_command("steelyard active")
