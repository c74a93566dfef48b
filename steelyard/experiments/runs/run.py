"""Runs: carry out a recipe into a directory, and read one back."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
from safetensors.torch import save
from torch import nn

from steelyard._support import _check
from steelyard._support._files import atomic_path, write_bytes
from steelyard._support._text import printable
from steelyard.bilevel.batch import Batch
from steelyard.distributed import ALONE, Ranks
from steelyard.experiments.data import OwnData, Splits
from steelyard.experiments.data.parquet import read_columns
from steelyard.experiments.errors import RunError, UserError
from steelyard.experiments.methods import check_groups
from steelyard.experiments.models import PretrainedResNet
from steelyard.experiments.runs.folder import (
    ACTIVE_STATE,
    ASIDE,
    CONFIG,
    ENVIRONMENT,
    METRICS,
    MODEL,
    REMEDY,
    RESULT,
    REWEIGHTING,
    SIGNS,
    begin,
    check_directory,
    check_files,
    check_recipe,
    holding,
    is_finished,
    read_json,
    readable,
    remove_run,
)
from steelyard.experiments.runs.log import Log, read_metrics
from steelyard.experiments.runs.recipe import Recipe
from steelyard.experiments.runs.run_folder import RunFolder, blamed_on, check_device, environment
from steelyard.experiments.runs.several_processes import check_alike, check_model, check_shared, loaded
from steelyard.experiments.runs.user_code import check_code
from steelyard.experiments.training.evaluation import Evaluation, evaluate
from steelyard.experiments.training.problem import Fitted, Problem
from steelyard.experiments.training.selection import check_selection
from steelyard.reweight import Reweighting

__all__ = ["Run", "check_directory", "execute", "read_run", "remove_run"]

SAMPLE_COLUMNS = {"index": "whole numbers", "weight": "numbers", "probability": "numbers", "target": "whole numbers"}
KNOWN_COLUMNS = {
    **dict.fromkeys(("environment", "group"), "whole numbers"),
    **dict.fromkeys(("label_flipped", "label_corrupted", "colour_agrees", "digit_agrees"), "true and false"),
    "id": "words",
}

Progress = Callable[[Evaluation], None]


@dataclass(frozen=True)
class Run:
    """A run that was carried out.

    Attributes:
        directory: where it lies.
        name: the recipe's name, as given.
        overrides: the recipe's fields set on the command line.
        recipe: the complete recipe, its seed included.
        history: every evaluated step, in order.
        environment: versions, platform, threads, seconds.
        samples: where the method learns sample weights, a row for each training sample: index, weight, probability,
            target, environment, group, the facts of the data set, and the user's id.
    """

    directory: Path
    name: str
    overrides: tuple[str, ...]
    recipe: Recipe
    history: tuple[Evaluation, ...]
    environment: Mapping[str, Any]
    samples: pandas.DataFrame | None


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
        resume: go on with the run that lies there; one that is finished is read and left alone, a missing one begun.
            With the same torch, device and number of threads the outcome is that of an uninterrupted run, bit for bit.
        checkpoint_every: optimizer steps between two checkpoints; a MAPLE step counts as its inner runs' steps. There
            is always one at the end of a method's stage.
        splits: the data, if it is at hand already (default: loaded as the recipe says).
        progress: called after each evaluated step (of a run that is gone on with, first for the last one that it has).
        stop: asked after each step; a number other than 0 ends the run, saved, by `steelyard.checkpoint.Stopped`.
        ranks: the processes that carry it out together, each with its share of the samples. The outcome is that of one,
            to rounding. The first writes; all must see the directory. A run may be gone on with by another number.
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
    check_device(recipe.device)
    name, overrides = printable(name), tuple(map(printable, overrides))
    if overwrite and resume:
        raise RunError("--overwrite begins anew and --resume goes on: give one of them")
    check_shared(recipe, ranks)
    first = ranks.rank == 0
    folder = RunFolder(directory, SIGNS)
    ranks.together(lambda: folder.recover() if first else None)
    options = {"overwrite": overwrite, "resume": resume, "checkpoint_every": checkpoint_every}
    check_alike(ranks, recipe, **options, **{"a finished run there": is_finished(directory)})
    if resume and is_finished(directory):
        check_recipe(directory, recipe)
        if isinstance(recipe.data, OwnData):
            check_files(directory, recipe.data.digests())
        done = read_run(directory)
        progress(done.history[-1])
        return done
    ranks.together(lambda: check_directory(directory, overwrite, resume) if first else None)
    if isinstance(recipe.model, PretrainedResNet):
        recipe.model.backbone.state(download)  # weights that are missing are said before anything is written
    with blamed_on(name, recipe.seed):
        splits = loaded(lambda: splits or recipe.data.load(recipe.seed, data_root, download), ranks)
        check_model(Problem(splits, recipe.model, recipe.seed, ranks=ranks))
    check_selection(recipe.selection, splits.groups)
    check_groups(recipe.method, splits)
    files = splits.sources
    with ExitStack() as held, _writing(directory):
        ours = ranks.together(lambda: _hold(held, folder, recipe, overwrite, resume, files) if first else lambda: True)
        with blamed_on(name, recipe.seed):
            log = Log(directory, recipe, checkpoint_every, stop, ranks, ours, files)
        if first and not (directory / CONFIG).is_file():
            folder.write_config(name, overrides, recipe, files)
        with log:
            if log.history:
                progress(log.history[-1])

            def observe(step: int, model: nn.Module, extra: Mapping[str, float]) -> None:
                evaluation = evaluate(problem, model, step, extra)
                log.add(evaluation)
                if first:
                    folder.settle()
                progress(evaluation)

            with blamed_on(name, recipe.seed):
                problem = Problem(splits.to(recipe.device), recipe.model, recipe.seed, log.journal, directory, ranks)
                fitted = recipe.method.fit(problem, observe)
            train, facts = problem.of_all(splits.train), {**environment(), "seconds": round(log.seconds, 3)}
            if ranks.size > 1:
                facts["processes"] = ranks.size
            facts |= {"notes": list(splits.notes)} if splits.notes else {}
            facts |= {"files": dict(files)} if files else {}
            samples = ranks.together(
                lambda: _finish(log, folder, ours, fitted, train, splits, facts) if first else None
            )
    if not first:
        return read_run(directory)
    return Run(directory, name, overrides, recipe, tuple(log.history), facts, samples)


def _hold(
    held: ExitStack, folder: RunFolder, recipe: Recipe, overwrite: bool, resume: bool, files: Mapping[str, str]
) -> Callable[[], bool]:
    ours = held.enter_context(holding(folder.path))
    begin(folder.path, recipe, overwrite, resume, files)
    held.enter_context(folder.replacing(overwrite, ours))
    return ours


def _finish(
    log: Log,
    folder: RunFolder,
    ours: Callable[[], bool],
    fitted: Fitted,
    train: Batch,
    known: Splits,
    facts: Mapping[str, Any],
) -> pandas.DataFrame | None:
    """Write what is left to write; return the table of samples, see `_write_outcome`."""
    log.check()
    samples = _write_outcome(folder.path, fitted, train, known)
    log.check()
    folder.finish(facts, ours)
    return samples


def _write_outcome(directory: Path, fitted: Fitted, train: Batch, known: Splits) -> pandas.DataFrame | None:
    """Write what a method ended with; return the table of samples, where weights were learned."""
    samples = None
    if fitted.reweighting is not None:
        samples = _samples(fitted.reweighting, train, known)
        with atomic_path(directory / RESULT) as temporary:
            samples.to_parquet(temporary, index=False)
        fitted.reweighting.save(directory / REWEIGHTING)
    write_bytes(directory / MODEL, save({key: value.contiguous() for key, value in fitted.model.state_dict().items()}))
    return samples


def read_run(directory: str | os.PathLike[str], *, samples: bool = True) -> Run:
    """Read a run directory; nothing in it is executed.

    Args:
        directory: of the run.
        samples: whether to read its table of samples, where it has one; comparisons need none.

    Raises:
        RunError: not a run directory, an unfinished run, or a damaged file.
    """
    place = Path(directory)
    if not (place / CONFIG).is_file():
        raise RunError(f"{place} is not a run directory: it has no {CONFIG}{_runs_below(place)}{_aside(place)}")
    if (place / ACTIVE_STATE).is_file():
        raise RunError(
            f"{place} holds a run of active learning, whose tables `steelyard active ... --resume --tables FOLDER` "
            "writes; compare and report are for those of `steelyard run`"
        )
    if not (place / ENVIRONMENT).is_file():
        raise RunError(
            f"the run in {place} did not finish: it has no {ENVIRONMENT}; go on with it by --resume{_aside(place)}"
        )
    name, overrides, recipe = RunFolder(place, SIGNS).read_config(Recipe)
    history = read_metrics(place / METRICS)
    last = history[-1].visible.step if history else 0
    if last != recipe.method.last_step:
        raise RunError(
            f"{place / METRICS}, line {len(history)}: the last evaluated step is {last if history else 'missing'}, the "
            f"run's last step is {recipe.method.last_step}; {REMEDY}"
        )
    with readable(place / ENVIRONMENT):
        facts = _read_environment(place / ENVIRONMENT)
    table = None
    if samples and os.path.lexists(place / RESULT):
        with readable(place / RESULT):
            table = _read_samples(place / RESULT)
    return Run(place, name, overrides, recipe, history, facts, table)


def _aside(place: Path) -> str:
    """Return where the run lies that this one was about to replace when it was killed."""
    found = [str(place / name) for name in ASIDE[:2] if (place / name).is_dir()]
    return f"; the run it was to replace lies in {found[0]}: the next start in {place} puts it back" if found else ""


def _runs_below(place: Path) -> str:
    """Return what to name instead of a folder that has runs one or two levels down."""
    found = sorted(path.parent for pattern in ("*", "*/*") for path in place.glob(f"{pattern}/{CONFIG}"))
    found = [path for path in found if path.name not in ASIDE]
    return f"; runs lie in {', '.join(map(str, found[:3]))}{' ...' if len(found) > 3 else ''}" if found else ""


def _read_environment(path: Path) -> dict[str, Any]:
    facts = read_json(path)
    if not isinstance(facts, dict) or not isinstance(facts.get("seconds"), (int, float)):
        raise RunError(f"{path} must be a table with the run's `seconds`; {REMEDY}")
    _check.in_range("seconds", facts["seconds"], low=0.0, high=1e12)
    if not isinstance(facts.get("files", {}), dict):
        raise RunError(f"{path}: `files` must be a table; {REMEDY}")
    notes = facts.get("notes", [])
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise RunError(f"{path}: `notes` must be a list of sentences; {REMEDY}")
    return facts


def _read_samples(path: Path) -> pandas.DataFrame:
    frame = read_columns(path, SAMPLE_COLUMNS, KNOWN_COLUMNS)
    if "id" in frame:
        frame["id"] = frame["id"].map(printable)
    for name in frame.columns.drop("id", errors="ignore"):
        low, high = (0.0, 1.0) if name == "probability" else (0, math.inf)
        if wrong := int((~frame[name].between(low, high) | (frame[name] == math.inf)).sum()):
            within = "in [0, 1]" if name == "probability" else "finite and >= 0"
            raise ValueError(f"the column {name!r} must be {within}; {wrong} of {len(frame)} rows are not")
    if frame["index"].duplicated().any():
        raise ValueError("the column 'index' must name each sample once")
    return frame


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """Turn a file that cannot be written (a full disk) into RunError with the remedy."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise RunError(
            f"the run in {directory} cannot be written: {error}; what is there is kept; mend that and go on by --resume"
        ) from error


def _samples(reweighting: Reweighting, train: Batch, known: Splits) -> pandas.DataFrame:
    frame = reweighting.to_frame().drop(columns="expected_weight")  # the product of two that are there
    columns = {"target": train.targets, "environment": train.environment, "group": train.group, **known.facts}
    frame = frame.assign(**{name: values.cpu().numpy() for name, values in columns.items() if values is not None})
    return frame.assign(id=list(known.ids)) if known.ids else frame
