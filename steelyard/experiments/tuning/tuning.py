"""A random search: its runs, what they have reached, tables of the trials, and the recipe that is chosen."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steelyard._support._files import write_text
from steelyard._support._plain import plain
from steelyard._support._toml import toml_text
from steelyard.experiments.compare.table import Table
from steelyard.experiments.errors import RecipeError, RunError, UserError
from steelyard.experiments.runs.folder import check_recipe, is_finished
from steelyard.experiments.runs.jobs import Failed, Planned
from steelyard.experiments.runs.recipe import Recipe, changed, load_recipe, overridden, recipe_names, table_of
from steelyard.experiments.runs.run import Run, read_run
from steelyard.experiments.training.evaluation import Visible
from steelyard.experiments.training.ranges import Range, shown
from steelyard.experiments.training.selection import CRITERIA, KNOWN, criterion
from steelyard.experiments.tuning.choice import REGRESSION, Reached, best, reached, scored
from steelyard.experiments.tuning.trials import Search, Trial, trials, value_of

__all__ = ["FILES", "Tuned", "Tuning"]

FILES = ("trials.md", "trials.csv", "chosen.toml")


@dataclass(frozen=True)
class Tuning:
    """A search that is planned.

    Attributes:
        name: the recipe's. overrides: fields set for every trial.
        folder: runs go to FOLDER/trial<k>/seed<s>, tables and the chosen recipe to FOLDER.
        search: what is drawn.
        trials: the trials.
        seeds: a run of each trial for each.
        selection: the criterion's name.
    """

    name: str
    overrides: tuple[str, ...]
    folder: Path
    search: Search
    trials: tuple[Trial, ...]
    seeds: tuple[int, ...]
    selection: str

    @classmethod
    def of(
        cls,
        name: str,
        overrides: Sequence[str],
        folder: Path,
        *,
        count: int = 16,
        seed: int = 0,
        seeds: Sequence[int] = (),
        groups: str = "recipe",
        vary: Sequence[str] = (),
        ranges: Sequence[str] = (),
    ) -> Tuning:
        """Plan a search.

        Args:
            name: a recipe's name, or the path of a .toml file.
            overrides: ``"field=value"``, the same in every trial; such a field is not drawn.
            folder: for runs and tables.
            count: trials, the recipe as it stands among them.
            seed: of the draws.
            seeds: of the runs of each trial (default: the recipe's own).
            groups: where groups are known, a key of `selection.KNOWN`; "recipe" leaves the recipe's own selection.
            vary, ranges: see `Search.of`; a range is ``"field=10^U(-3, -1)"``.

        Raises:
            RecipeError: a field or a range that cannot be; a selection that prefers nothing; a method that needs groups
                where `groups` says that none are known. UserError: a seed twice.
        """
        if twice := [seed for seed in seeds if list(seeds).count(seed) > 1]:
            raise UserError(f"seeds names {twice[0]} twice; name each seed once")
        given = dict(map(_range, ranges))
        held = [override.partition("=")[0].strip() for override in overrides]
        if groups != "recipe":
            overrides = [*overrides, f"selection={_selection(name, overrides, groups)}"]
        recipe = load_recipe(name, overrides)
        _check_groups(recipe, groups)
        scored(CRITERIA[recipe.selection], recipe.selection)
        search = Search.of(recipe, held=held, vary=vary, given=given)
        drawn = tuple(trials(name, overrides, search, count, seed))
        runs = tuple(seeds) or (recipe.seed,)
        return cls(name, tuple(overrides), folder, search, drawn, runs, recipe.selection)

    @property
    def planned(self) -> list[Planned]:
        """The runs, those of a trial one after the other."""
        return [
            Planned(
                load_recipe(self.name, self.settings(trial), seed),
                self.folder_of(trial) / f"seed{seed}",
                self.name,
                self.settings(trial),
            )
            for trial in self.trials
            for seed in self.seeds
        ]

    def settings(self, trial: Trial) -> tuple[str, ...]:
        """Return all overrides of a trial."""
        return (*self.overrides, *trial.overrides)

    def folder_of(self, trial: Trial) -> Path:
        """Return where the trial's runs lie."""
        return self.folder / f"trial{trial.number:02d}"

    def commands(self, *more: str) -> list[str]:
        """Return a command for each trial: together they carry out the search anywhere, and `collect` reads it.

        Args:
            more: further words of each command.
        """
        return [
            shlex.join(
                [
                    *("steelyard", "run", self.name),
                    *(word for setting in self.settings(trial) for word in ("--set", setting)),
                    *("--seeds", *map(str, self.seeds)),
                    *("--out", str(self.folder_of(trial)), "--resume"),
                    *more,
                ]
            )
            for trial in self.trials
        ]

    def collect(self) -> list[Run | Failed]:
        """Return the runs that are finished, and `Failed` for those that are not; nothing is carried out.

        Raises:
            RunError: a folder has another recipe's run, or a damaged one.
        """
        found: list[Run | Failed] = []
        for one in self.planned:
            check_recipe(one.directory, one.recipe)
            done = is_finished(one.directory)
            found.append(read_run(one.directory, samples=False) if done else Failed(one, "it is not finished"))
        return found

    def tuned(self, outcomes: Sequence[Run | Failed]) -> Tuned:
        """Return what came of the runs, which are given in the order of `planned`.

        Raises:
            RunError: no trial has a run for each seed with a score.
        """
        recipe = load_recipe(self.name, self.overrides)
        choose = scored(criterion(recipe.selection, recipe.train_floor), recipe.selection)
        found: list[Reached | None] = []
        why: list[str] = []
        for k in range(len(self.trials)):
            runs = outcomes[k * len(self.seeds) : (k + 1) * len(self.seeds)]
            failed = [one.why for one in runs if isinstance(one, Failed)]
            visible = [[step.visible for step in one.history] for one in runs if isinstance(one, Run)]
            found.append(None if failed else reached(visible, choose))
            why.append(failed[0] if failed else "")
        chosen = best(found)
        if chosen is None:
            reason = next(filter(None, why), "each diverged, or has no score")
            raise RunError(f"none of {len(self.trials)} trials can be chosen: {reason}")
        return Tuned(self, tuple(found), tuple(why), chosen)


@dataclass(frozen=True)
class Tuned:
    """What a search came to.

    Attributes:
        tuning: the search.
        reached: what each trial has reached; None for one that failed.
        why: why each failed, "" for those that did not.
        chosen: the position of the trial that is chosen.
    """

    tuning: Tuning
    reached: tuple[Reached | None, ...]
    why: tuple[str, ...]
    chosen: int

    @property
    def table(self) -> Table:
        """The trials, the best first: what was drawn and what validation said. It has no test figure."""
        fields = list(self.tuning.search.ranges)
        order = sorted(range(len(self.reached)), key=lambda k: (k != self.chosen, -self._score(k), k))
        lines = [self._line(k, fields) for k in order]
        notes = [
            f"The score is that of {self.tuning.selection}, at the step that it prefers in each run (early stopping by "
            f"the same criterion), the mean over {len(self.tuning.seeds)} seed{'s' * (len(self.tuning.seeds) > 1)}. "
            "Trial 0 is the recipe as it stands. validation: the accuracy there (of a regression, the squared error). "
            "Nothing here has seen the test split.",
            *(f"{field}: {one}, {one.source}." for field, one in self.tuning.search.ranges.items()),
            *(f"Trial {k} failed: {why}" for k, why in enumerate(self.why) if why),
        ]
        return Table(("trial", "score", "steps", "validation", *_brief(fields)), lines, notes)

    def _score(self, number: int) -> float:
        """Return the score to sort by: a trial that has none comes last."""
        found = self.reached[number]
        return found.score if found is not None and not math.isnan(found.score) else -math.inf

    def _line(self, number: int, fields: Sequence[str]) -> list[str]:
        trial, found = self.tuning.trials[number], self.reached[number]
        recipe = load_recipe(self.tuning.name, self.tuning.settings(trial))
        values = [shown(value_of(field, recipe)) for field in fields]
        label = f"{number} (chosen)" if number == self.chosen else str(number)
        if found is None:
            return [label, "failed", "", "", *values]
        accuracies = " ".join(f"{_figure(one):.4f}" for one in found.chosen)
        score = "none" if math.isnan(found.score) else f"{found.score:.4f}"
        return [label, score, " ".join(str(one.step) for one in found.chosen), accuracies, *values]

    def write(self) -> list[Path]:
        """Write `FILES` into the search's folder; return where they are."""
        table = self.table
        places = [self.tuning.folder / name for name in FILES]
        for place, text in zip(places, (table.markdown(), table.csv(), self.recipe(places[2])), strict=True):
            write_text(place, text)
        return places

    def recipe(self, place: Path) -> str:
        """Return the chosen recipe as TOML for a file at `place`: its base and what is different.

        Where the base cannot be named from there (a file that is not in its folder or below), it is complete.
        """
        tuning = self.tuning
        trial = tuning.trials[self.chosen]
        wanted = load_recipe(tuning.name, tuning.settings(trial))
        head = (
            f"# Trial {trial.number} of {len(tuning.trials)}, chosen by {tuning.selection} on validation: "
            f"{self._score(self.chosen):.4f}.\n"
        )
        base = _base_for(tuning.name, place)
        if base is not None:
            changes = overridden({}, tuning.settings(trial))
            if changed(tuning.name, changes) == wanted:
                return head + toml_text({"base": base, **changes})
        return head + toml_text(plain(wanted))


def _figure(seen: Visible) -> float:
    """Return the accuracy on validation, or of a regression the mean squared error there."""
    return seen.validation.accuracy if seen.validation.errors is None else seen.validation.errors.mse


def _brief(fields: Sequence[str]) -> list[str]:
    """Return names as short as they can be without two alike: the last parts of the fields."""
    parts = [field.split(".") for field in fields]
    for length in range(1, 20):
        names = [".".join(one[-length:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return list(fields)


def _base_for(name: str, place: Path) -> str | None:
    if not name.endswith(".toml"):
        return name if name in recipe_names() else None
    try:
        return Path(name).resolve().relative_to(place.parent.resolve()).as_posix()
    except ValueError:
        return None


def _range(text: str) -> tuple[str, Range]:
    field, equals, said = text.partition("=")
    try:
        if not equals:
            raise ValueError(f"a range is field=U(a, b), field=10^U(a, b) or field=2^U(a, b), got {text!r}")
        return field.strip(), Range.of_text(said)
    except ValueError as error:
        raise RecipeError(f"--range {text}: {error}") from error


def _selection(name: str, overrides: Sequence[str], groups: str) -> str:
    """Return the criterion where groups are known as `groups` says, by the task of the recipe's data."""
    table = table_of(name, overrides)
    return (REGRESSION if table.get("data", {}).get("task") == "regression" else KNOWN)[groups]


def _check_groups(recipe: Recipe, groups: str) -> None:
    """Raise RecipeError if the method reads groups where the user says that none are known."""
    method = recipe.method
    if groups in ("validation", "nowhere") and method.needs_training_groups:
        raise RecipeError(
            f"method {method.name!r} as it is set reads the groups of training samples, and --groups {groups} says "
            "that they are not known; take a method without them (erm, jtt, lff, kl_dro), or --groups training"
        )
    if groups == "nowhere" and method.needs_validation_groups:
        raise RecipeError(
            f"method {method.name!r} as it is set reads the groups of validation samples, and --groups nowhere says "
            "that there are none; take a method without them, or --groups validation"
        )
