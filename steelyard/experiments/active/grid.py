"""Runs of one recipe side by side: selectors, kinds of noise, with and without fine-tuning, seeds."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Literal

from steelyard.experiments.active import tables
from steelyard.experiments.active.loop import Round
from steelyard.experiments.active.recipe import ActiveRecipe, load_active_recipe
from steelyard.experiments.active.report import Section, write_active_report
from steelyard.experiments.active.run import (
    ActiveRun,
    Shared,
    check_active_directory,
    data_of,
    execute_active,
)
from steelyard.experiments.errors import UserError
from steelyard.experiments.runs.folder import check_place

__all__ = ["Grid", "Planned"]

_SWITCH = {"recipe": (None,), "off": ("false",), "on": ("true",), "both": ("false", "true")}


@dataclass(frozen=True)
class Planned:
    """A run to be carried out: its recipe, the fields that were set for it, and its directory."""

    recipe: ActiveRecipe
    overrides: tuple[str, ...]
    directory: Path


@dataclass
class Grid:
    """Planned runs, and what they gave.

    Attributes:
        name: the recipe's name, as given. command: what makes the grid. folder: of its runs.
        planned: those that share data and first round are neighbours.
        runs: what was carried out so far.
    """

    name: str
    command: str
    planned: tuple[Planned, ...]
    folder: Path
    runs: list[ActiveRun] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        name: str,
        overrides: Sequence[str],
        folder: Path,
        *,
        seeds: Sequence[int] = (),
        selectors: Sequence[str] = (),
        noises: Sequence[str] = (),
        fine_tuning: Literal["recipe", "off", "on", "both"] = "recipe",
        program: str = "steelyard active",
    ) -> Grid:
        """Return the grid of all combinations; an empty sequence leaves that to the recipe.

        `program` is what the grid's command begins with.

        Raises:
            RecipeError: no such recipe, or a field that does not fit. UserError: a seed, selector or noise twice.
        """
        for option, named in (("--seeds", seeds), ("--selectors", selectors), ("--noises", noises)):
            if twice := [value for value in named if list(named).count(value) > 1]:
                raise UserError(f"{option} names {twice[0]} twice")
        planned = []
        for seed, noise, tuned, selector in _combinations(seeds, noises, _SWITCH[fine_tuning], selectors):
            # No noise has no fields: those of the recipe's kind go with it.
            kind = {"noise": '{name = "none"}'} if noise == "none" else {"noise.name": noise}
            sets = {**kind, "fine_tune": tuned, "selector": selector}
            chosen = (*overrides, *(f"{key}={value}" for key, value in sets.items() if value is not None))
            recipe = load_active_recipe(name, chosen, seed)
            method = recipe.selector + ("_ft" if recipe.fine_tune else "")
            planned.append(Planned(recipe, chosen, folder / recipe.noise.name / method / f"seed{recipe.seed}"))
        lists = {"seeds": seeds, "selectors": selectors, "noises": noises}
        words = [*program.split(), name, *(word for item in overrides for word in ("--set", item))]
        words += [word for key, values in lists.items() if values for word in (f"--{key}", *map(str, values))]
        words += ["--fine-tuning", fine_tuning] if fine_tuning != "recipe" else []
        words += ["--data-root", "DATA"] if planned[0].recipe.data.needs_root else []
        words += ["--allow-code"] if planned[0].recipe.encoder.code else []
        return cls(name, shlex.join(words), tuple(planned), folder)

    @property
    def rounds(self) -> int:
        """How many trainings there are in all."""
        return sum(plan.recipe.schedule.rounds + 1 for plan in self.planned)

    @property
    def begun(self) -> bool:
        """Whether a run lies there, which could be resumed."""
        return any(plan.directory.is_dir() for plan in self.planned)

    def check(self, *, overwrite: bool, resume: bool) -> None:
        """Raise UserError if any run cannot be written: before the first hour of training, not after it."""
        for plan in self.planned:
            check_place(plan.directory, below=self.folder.parent)
            check_active_directory(plan.directory, plan.recipe, overwrite=overwrite, resume=resume)

    def execute(
        self,
        folder: Path,
        *,
        data_root: Path | None,
        download: bool,
        overwrite: bool,
        resume: bool,
        checkpoint_every: int = 200,
        progress: Callable[[int, str], None] = lambda done, text: None,
        stop: Callable[[], int] = lambda: 0,
        section: Section = lambda found: "",
        allow_code: bool = False,
    ) -> list[str]:
        """Carry out all runs and write their tables into `folder`; return the names of the files.

        Args:
            folder: for the tables.
            data_root, download, overwrite, resume, checkpoint_every, stop, allow_code: see `execute_active`.
            progress: called with the trainings done and a line of text.
            section: see `write_active_report`.
        """
        done = 0
        for group in _groups(self.planned):
            data = cache(partial(data_of, group[0].recipe, data_root, download, allow_code))  # none where all are done
            shared: Shared = {}
            for plan in group:

                def told(last: Round, plan: Planned = plan, before: int = done) -> None:
                    progress(before + last.number + 1, _line(plan, last))

                run = execute_active(
                    plan.recipe,
                    plan.directory,
                    name=self.name,
                    overrides=plan.overrides,
                    overwrite=overwrite,
                    resume=resume,
                    splits=data,
                    shared=shared,
                    checkpoint_every=checkpoint_every,
                    progress=told,
                    stop=stop,
                )
                self.runs.append(run)
                done += plan.recipe.schedule.rounds + 1
        return write_active_report(self.runs, folder, self.command, section)

    def results(self) -> list[tuple[str, str]]:
        """Return titles and Markdown tables of what the last rounds ended with."""
        found = tables.cells(self.runs)
        titles = {
            "test": "Test accuracy (%)",
            "test_learnable": "Test accuracy, the three moons that can be learned (%)",
            "clean_share_selected": "Clean samples among those selected (%)",
        }
        return [(title, tables.markdown(found.last(key))) for key, title in titles.items() if found.last(key)]


def _combinations(
    seeds: Sequence[int], noises: Sequence[str], tunings: Sequence[str | None], selectors: Sequence[str]
) -> Iterator[tuple[int | None, str | None, str | None, str | None]]:
    """Yield (seed, noise, fine_tune, selector); the selector changes fastest."""
    for seed in seeds or (None,):
        for noise in noises or (None,):
            for tuned in tunings:
                for selector in selectors or (None,):
                    yield seed, noise, tuned, selector


def _groups(planned: Sequence[Planned]) -> Iterator[list[Planned]]:
    """Yield neighbours of the same data: seed and noise."""
    group: list[Planned] = []
    for plan in planned:
        if group and (plan.recipe.seed, plan.recipe.noise) != (group[0].recipe.seed, group[0].recipe.noise):
            yield group
            group = []
        group.append(plan)
    if group:
        yield group


def _line(plan: Planned, last: Round) -> str:
    recipe, figures = plan.recipe, last.metrics
    return (
        f"{recipe.label} on {recipe.noise.name}, seed {recipe.seed}, round {last.number}/{recipe.schedule.rounds}: "
        f"{figures['labelled']:.0f} labelled, validation {figures['validation']:.3f}"
    )
