"""Runs of several recipes and seeds: what is carried out, bars for all of them, and what is said of those that fail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from steelyard._support._errors import UserError
from steelyard._support._text import printable
from steelyard.cli.options import check_seeds
from steelyard.cli.shared import progress_bars, stoppable
from steelyard.distributed import Ranks
from steelyard.experiments.errors import RunError
from steelyard.experiments.runs.jobs import Failed, Options, Planned, Watch, execute_all, execute_one
from steelyard.experiments.runs.recipe import load_recipe
from steelyard.experiments.runs.run import Run
from steelyard.experiments.training.evaluation import Evaluation, Visible

__all__ = ["bars_of_all", "carry_out", "check_jobs", "plan", "raise_failures", "together"]

_MOST_JOBS = 1024


def check_jobs(jobs: int) -> int:
    """Return ``--jobs``, or say that it must be at least 1."""
    if not 1 <= jobs <= _MOST_JOBS:
        raise UserError(f"--jobs must be 1 to {_MOST_JOBS}, got {jobs}")
    return jobs


def plan(names: Sequence[str], overrides: tuple[str, ...], seeds: Sequence[int], out: Path | None) -> list[Planned]:
    """Return a run of each recipe for each seed, the recipe's own where there are none.

    Runs go to OUT/seed<k>, and to OUT/<recipe>/seed<k> where there are several recipes.

    Raises:
        RecipeError: see `load_recipe`. UserError: a seed twice, or two runs would go to the same folder.
    """
    check_seeds("--seeds", seeds)
    planned: list[Planned] = []
    for name in names:
        folder = Path(name).stem if name.endswith(".toml") else name
        root = Path("runs") / folder if out is None else out / (folder if len(names) > 1 else "")
        for seed in seeds or (None,):
            recipe = load_recipe(name, overrides, seed)
            planned.append(Planned(recipe, root / f"seed{recipe.seed}", name, overrides))
    places = [one.directory for one in planned]
    if twice := next((one for one in planned if places.count(one.directory) > 1), None):
        raise UserError(f"two runs would go to {twice.directory}; name each recipe once, and files unlike each other")
    return planned


def carry_out(console: Console, planned: Sequence[Planned], options: Options, jobs: int, threads: int) -> list[Run]:
    """Carry out the runs under bars; return them all.

    Raises:
        RunError: some failed, though the others were carried out; it names them.
    """
    with progress_bars(console) as bars, stoppable(bars) as stop:
        watch = bars_of_all(bars, planned)
        outcomes = execute_all(planned, options, jobs=jobs, threads=threads, watch=watch, stop=stop)
    raise_failures(outcomes)
    return [one for one in outcomes if isinstance(one, Run)]


def together(console: Console, planned: Sequence[Planned], options: Options, ranks: Ranks) -> list[Run]:
    """Carry out the runs, one after the other, each by all `ranks`; the first that fails ends them."""
    with progress_bars(console) as bars, stoppable(bars) as stop:
        watch = bars_of_all(bars, planned)
        runs = []
        for number, one in enumerate(planned):

            def told(evaluation: Evaluation, number: int = number) -> None:
                watch(number, evaluation.visible)

            runs.append(execute_one(one, options, told, stop, ranks))
            watch(number, None)
    return runs


def raise_failures(outcomes: Sequence[Run | Failed]) -> None:
    """Raise RunError that says which runs failed, and why."""
    failed = [one for one in outcomes if isinstance(one, Failed)]
    if len(outcomes) == 1 and failed:
        raise RunError(failed[0].why)
    if failed:
        reasons = dict.fromkeys(one.why for one in failed)
        named = (f"{', '.join(_told(one.planned) for one in failed if one.why == why)}: {why}" for why in reasons)
        others = ", the others are finished" if len(failed) < len(outcomes) else ""
        raise RunError(f"{len(failed)} of {len(outcomes)} runs failed{others}; {'; '.join(named)}")


def bars_of_all(bars: Progress, planned: Sequence[Planned]) -> Watch:
    """Return a callback that moves one bar over all runs, and one for each that goes on."""
    whole = bars.add_task(f"0 of {len(planned)} runs", total=len(planned))
    going: dict[int, TaskID] = {}
    ended = 0

    def watch(number: int, reached: Visible | Failed | None) -> None:
        nonlocal ended
        name = _told(planned[number])
        if isinstance(reached, Visible):
            last = planned[number].recipe.method.last_step
            if number not in going:
                going[number] = bars.add_task(name, total=last)
            text = f"{name}, step {reached.step}/{last}: {_figures(reached)}"
            bars.update(going[number], completed=reached.step, description=printable(text))
            return
        if number in going:
            bars.remove_task(going.pop(number))
        if reached is not None:
            bars.console.print(f"Failed: {printable(name)}: {printable(reached.why)}", markup=False, soft_wrap=True)
        ended += 1
        bars.update(whole, completed=ended, description=f"{ended} of {len(planned)} runs")

    return watch


def _figures(reached: Visible) -> str:
    train, validation = reached.train.errors, reached.validation.errors
    if train is not None and validation is not None:
        return f"train MSE {train.mse:.4g}, validation MSE {validation.mse:.4g}"
    return f"train {reached.train.accuracy:.3f}, validation {reached.validation.accuracy:.3f}"


def _told(one: Planned) -> str:
    return f"{one.name} seed {one.recipe.seed}"
