"""Runs: carry out a recipe into a directory, and read one back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
from safetensors.torch import save
from torch import Tensor, nn

from steelyard._support._files import atomic_path, write_bytes
from steelyard._support._text import printable
from steelyard.bilevel.batch import Batch
from steelyard.distributed import ALONE, Ranks
from steelyard.experiments.data import OwnData, Splits
from steelyard.experiments.methods import check_groups
from steelyard.experiments.models import PretrainedResNet
from steelyard.experiments.runs.execution import Ours, Work, carried_out
from steelyard.experiments.runs.folder import (
    MODEL,
    RESULT,
    REWEIGHTING,
    SIGNS,
    begin,
    check_directory,
    check_files,
    check_recipe,
    remove_run,
)
from steelyard.experiments.runs.log import Log
from steelyard.experiments.runs.reading import Run, read_run
from steelyard.experiments.runs.recipe import Recipe
from steelyard.experiments.runs.run_folder import RunFolder, environment
from steelyard.experiments.runs.several_processes import check_alike, check_model, check_shared, loaded
from steelyard.experiments.runs.user_code import check_code
from steelyard.experiments.training.evaluation import Evaluation, evaluate
from steelyard.experiments.training.problem import Fitted, Problem
from steelyard.experiments.training.selection import check_selection
from steelyard.reweight import Reweighting

__all__ = ["Run", "check_directory", "execute", "read_run", "remove_run"]

Progress = Callable[[Evaluation], None]


def execute(
    recipe: Recipe,
    directory: Path,
    *,
    name: str,
    overrides: tuple[str, ...] = (),
    data_root: Path | None = None,
    download: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    checkpoint_every: int = 200,
    splits: Splits | None = None,
    progress: Progress = lambda evaluation: None,
    stop: Callable[[], int] = lambda: 0,
    ranks: Ranks = ALONE,
    allow_code: bool = False,
) -> Run:
    """Carry out `recipe` and write the run into `directory`.

    Files: `config.json` (the complete recipe), `environment.json`, `metrics.jsonl` (a line for each evaluated step,
    written as it happens; null for a number that is NaN or infinite) and `model.safetensors` (parameters of the final
    model); of methods that learn sample weights also `result.parquet` (a row for each training sample) and
    `reweighting.safetensors` (for `Reweighting.load`); of methods with a prior `prior.safetensors`, filed before
    their first step (for `priors.ComputedPrior.load`). All but the metrics are written whole or not at all.
    While it goes on, and if it ends early, `checkpoint.safetensors` and the one before it
    (`steelyard.checkpoint.Journal`); a run that is finished has none.

    Args:
        recipe: what to run.
        directory: made if missing.
        name: the recipe's name, kept for tables.
        overrides: fields of the recipe that were set, kept for the command in tables.
        data_root: where data sets lie that are not installed.
        download: whether a data set may be downloaded there.
        overwrite: replace the run that lies in `directory`; it is put back if the new one fails before it has
            evaluated a step or written a checkpoint.
        resume: continue the run that lies there; one that is finished is read and left alone, a missing one begun.
            With the same torch, device and number of threads the outcome is that of an uninterrupted run, bit for bit.
        checkpoint_every: optimizer steps between two checkpoints; a MAPLE step counts as its inner runs' steps. There
            is always one at the end of a method's stage.
        splits: the data, if it is at hand already (default: loaded as the recipe says).
        progress: called after each evaluated step (of a run that is resumed, first for the last one that it has).
        stop: asked after each step; a number other than 0 ends the run, saved, by `steelyard.checkpoint.Stopped`.
        ranks: the processes that carry it out together, each with its share of the samples. The outcome is that of one,
            to rounding. Rank 0 writes; all must see the directory. A run may be resumed by another number.
        allow_code: whether code that the recipe names ("module:function") may run.

    Raises:
        RunError: the directory is not empty (and, with `overwrite` or `resume`, holds more than a run), cannot be
            written, is in use by another run, or holds another recipe's, or one on other
            files; a checkpoint is damaged, or of another
            version; the device is not there; the recipe's settings do not fit the data, or training failed.
        DataError: the data are not there.
        RecipeError: the recipe names code and `allow_code` is false; it selects by groups and the data has none; its
            method needs the groups of training samples, which the data do not tell; or several ranks cannot share its
            method or model.
        LostError: the run's files were removed, moved or replaced while it went on; nothing more is written or removed.
        RankError: another rank failed or is gone, or was given another recipe, other options or other data.
        Stopped: the run was asked to stop.
    """
    check_code(recipe, allow_code)
    check_shared(recipe, ranks)
    check_alike(ranks, recipe, overwrite=overwrite, resume=resume, checkpoint_every=checkpoint_every)
    name, overrides = printable(name), tuple(map(printable, overrides))
    source = _Source(splits, data_root, download)
    work = _Training(recipe, name, overrides, source, checkpoint_every, progress, stop, ranks)
    return carried_out(work, directory, name=name, overrides=overrides, overwrite=overwrite, resume=resume, ranks=ranks)


@dataclass(frozen=True)
class _Source:
    """Where the data come from: at hand, or loaded as `load` says."""

    splits: Splits | None
    root: Path | None
    download: bool


class _Training(Work[Run]):
    """A run of one recipe."""

    signs = SIGNS

    def __init__(
        self,
        recipe: Recipe,
        name: str,
        overrides: tuple[str, ...],
        source: _Source,
        every: int,
        progress: Progress,
        stop: Callable[[], int],
        ranks: Ranks,
    ) -> None:
        self.recipe, self.name, self.overrides, self.source = recipe, name, overrides, source
        self.every, self.progress, self.stop, self.ranks = every, progress, stop, ranks

    def check(self, directory: Path, overwrite: bool, resume: bool) -> None:
        check_directory(directory, overwrite, resume)

    def read(self, directory: Path) -> Run:
        check_recipe(directory, self.recipe)
        if isinstance(self.recipe.data, OwnData):
            check_files(directory, self.recipe.data.digests())
        run = read_run(directory)
        self.progress(run.history[-1])
        return run

    def load(self) -> Mapping[str, str]:
        recipe, source = self.recipe, self.source
        if isinstance(recipe.model, PretrainedResNet):
            recipe.model.backbone.state(source.download)  # weights that are missing are said before anything is written
        self.splits = loaded(
            lambda: source.splits or recipe.data.load(recipe.seed, source.root, source.download), self.ranks
        )
        check_model(Problem(self.splits, recipe.model, recipe.seed, ranks=self.ranks))
        check_selection(recipe.selection, self.splits.groups)
        check_groups(recipe.method, self.splits)
        return self.splits.sources

    def begin(self, directory: Path, overwrite: bool, resume: bool, files: Mapping[str, str]) -> None:
        begin(directory, self.recipe, overwrite, resume, files)

    def open(self, folder: RunFolder, ours: Ours, held: ExitStack, files: Mapping[str, str]) -> None:
        self.log = held.enter_context(Log(folder.path, self.recipe, self.every, self.stop, self.ranks, ours, files))

    def train(self, folder: RunFolder, ours: Ours) -> None:
        recipe, splits, ranks = self.recipe, self.splits, self.ranks
        if self.log.history:
            self.progress(self.log.history[-1])
        problem = Problem(splits.to(recipe.device), recipe.model, recipe.seed, self.log.journal, folder.path, ranks)

        def observe(step: int, model: nn.Module, extra: Mapping[str, float]) -> None:
            evaluation = evaluate(problem, model, step, extra)
            self.log.add(evaluation)
            if ranks.rank == 0:
                folder.settle()
            self.progress(evaluation)

        self.fitted = recipe.method.fit(problem, observe)
        self.learned_from = problem.of_all(splits.train)

    def write(self, folder: RunFolder, ours: Ours) -> Mapping[str, Any]:
        facts = {**environment(), "seconds": round(self.log.seconds, 3)}
        if self.ranks.size > 1:
            facts["processes"] = self.ranks.size
        facts |= {"notes": list(self.splits.notes)} if self.splits.notes else {}
        facts |= {"files": dict(self.splits.sources)} if self.splits.sources else {}
        facts |= self.fitted.facts
        self.log.check()
        self.samples = _write_outcome(folder.path, self.fitted, self.learned_from, self.splits)
        self.log.check()
        self.facts = facts
        return facts

    def done(self, directory: Path) -> Run:
        if self.ranks.rank:
            return read_run(directory)
        history = tuple(self.log.history)
        return Run(directory, self.name, self.overrides, self.recipe, history, self.facts, self.samples)


def _write_outcome(directory: Path, fitted: Fitted, train: Batch, known: Splits) -> pandas.DataFrame | None:
    """Write what a method ended with; return the table of samples, where weights were learned."""
    samples = None
    if fitted.reweighting is not None:
        samples = _samples(fitted.reweighting, train, known, fitted.columns)
        with atomic_path(directory / RESULT) as temporary:
            samples.to_parquet(temporary, index=False)
        fitted.reweighting.save(directory / REWEIGHTING)
    write_bytes(directory / MODEL, save({key: value.contiguous() for key, value in fitted.model.state_dict().items()}))
    return samples


def _samples(reweighting: Reweighting, train: Batch, known: Splits, learned: Mapping[str, Tensor]) -> pandas.DataFrame:
    frame = reweighting.to_frame().drop(columns="expected_weight")  # the product of two that are there
    columns = {"target": train.targets, "environment": train.environment, "group": train.group, **known.facts}
    columns |= learned
    if known.target_scale is not None:  # in the target's own units
        mean, deviation = known.target_scale
        columns["target"] = mean + deviation * train.targets.double()
    frame = frame.assign(**{name: values.cpu().numpy() for name, values in columns.items() if values is not None})
    return frame.assign(id=list(known.ids)) if known.ids else frame
