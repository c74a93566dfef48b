"""Runs: carry out a recipe into a directory, and read one back."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas
import torch
from safetensors.torch import save_file
from torch import nn

import steelyard
from steelyard._files import atomic_path, write_text
from steelyard.experiments.data import Splits
from steelyard.experiments.errors import RunError, UserError
from steelyard.experiments.evaluation import Evaluation, SplitMetrics, Visible, evaluate, finite_json, number
from steelyard.experiments.problem import Problem
from steelyard.experiments.recipe import Recipe
from steelyard.experiments.schema import parse, plain
from steelyard.experiments.selection import check_selection
from steelyard.reweight import Reweighting

__all__ = ["Run", "check_directory", "environment", "execute", "read_run", "remove_run"]

CONFIG, ENVIRONMENT, METRICS = "config.json", "environment.json", "metrics.jsonl"
RESULT, REWEIGHTING, MODEL = "result.parquet", "reweighting.safetensors", "model.safetensors"
FILES = (CONFIG, ENVIRONMENT, METRICS, RESULT, REWEIGHTING, MODEL)

SAMPLE_COLUMNS = ("index", "weight", "probability", "target")

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
            target, environment, group, and the facts of the data set.
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
    splits: Splits | None = None,
    progress: Progress = lambda evaluation: None,
) -> Run:
    """Carry out `recipe` and write the run into `directory`.

    Files: `config.json` (the complete recipe), `environment.json`, `metrics.jsonl` (a line for each evaluated step,
    written as it happens; null for a number that is NaN or infinite) and `model.safetensors` (parameters of the final
    model); of methods that learn sample weights also `result.parquet` (a row for each training sample) and
    `reweighting.safetensors` (for `Reweighting.load`). All but the metrics are written whole or not at all.

    Args:
        recipe: what to run.
        directory: made if missing.
        name: the recipe's name, kept for tables.
        overrides: fields of the recipe that were set, kept for the command in tables.
        data_root: where data sets lie that are not installed.
        download: whether a data set may be downloaded there.
        overwrite: replace the run that lies in `directory`.
        splits: the data, if it is at hand already (default: loaded as the recipe says).
        progress: called after each evaluated step.

    Raises:
        RunError: the directory is not empty (and, with `overwrite`, holds more than a run) or cannot be written; the
            device is not there; the recipe's settings do not fit the data, or training failed.
        DataError: the data are not there.
        RecipeError: the recipe selects by groups and the data has none.
    """
    _check_device(recipe.device)
    if splits is None:
        with _blamed_on(recipe, name):
            splits = recipe.data.load(recipe.seed, data_root, download)
    check_selection(recipe.selection, splits.groups)
    _prepare(directory, overwrite)
    config = {"name": name, "overrides": list(overrides), "recipe": plain(recipe)}
    write_text(directory / CONFIG, json.dumps(config, indent=2) + "\n")
    history: list[Evaluation] = []
    began = time.perf_counter()
    with open(directory / METRICS, "w", encoding="utf-8") as metrics:

        def observe(step: int, model: nn.Module, extra: Mapping[str, float]) -> None:
            evaluation = evaluate(problem, model, step, extra)
            metrics.write(json.dumps(_line(evaluation), allow_nan=False) + "\n")
            metrics.flush()
            history.append(evaluation)
            progress(evaluation)

        with _blamed_on(recipe, name):
            problem = Problem(splits.to(recipe.device), recipe.model, recipe.seed)
            fitted = recipe.method.fit(problem, observe)
    seconds = time.perf_counter() - began
    samples = None
    if fitted.reweighting is not None:
        samples = _samples(fitted.reweighting, splits)
        with atomic_path(directory / RESULT) as temporary:
            samples.to_parquet(temporary, index=False)
        fitted.reweighting.save(directory / REWEIGHTING)
    with atomic_path(directory / MODEL) as temporary:
        save_file({key: value.contiguous() for key, value in fitted.model.state_dict().items()}, temporary)
    facts = {**environment(), "seconds": round(seconds, 3)}
    write_text(directory / ENVIRONMENT, json.dumps(facts, indent=2) + "\n")  # last: its presence says "complete"
    return Run(directory, name, overrides, recipe, tuple(history), facts, samples)


def read_run(directory: str | os.PathLike[str]) -> Run:
    """Read a run directory; nothing in it is executed.

    Raises:
        RunError: not a run directory, an unfinished run, or a damaged file.
    """
    place = Path(directory)
    if not (place / CONFIG).is_file():
        raise RunError(f"{place} is not a run directory: it has no {CONFIG}{_runs_below(place)}")
    if not (place / ENVIRONMENT).is_file():
        raise RunError(f"the run in {place} did not finish: it has no {ENVIRONMENT}; run it again with --overwrite")
    try:
        config = json.loads((place / CONFIG).read_text(encoding="utf-8"))
        recipe = parse(Recipe, config["recipe"], str(place / CONFIG))
        name, overrides = str(config["name"]), tuple(map(str, config["overrides"]))
        history = _read_metrics(place / METRICS)
        facts = _read_environment(place / ENVIRONMENT)
        samples = _read_samples(place / RESULT) if (place / RESULT).is_file() else None
    except RunError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"the run in {place} cannot be read: {error}") from error
    if not history:
        raise RunError(f"the run in {place} has no evaluated step in {METRICS}")
    return Run(place, name, overrides, recipe, history, facts, samples)


def _runs_below(place: Path) -> str:
    """Return what to name instead of a folder that has runs one or two levels down."""
    found = sorted(path.parent for pattern in ("*", "*/*") for path in place.glob(f"{pattern}/{CONFIG}"))
    return f"; runs lie in {', '.join(map(str, found[:3]))}{' ...' if len(found) > 3 else ''}" if found else ""


def _read_metrics(path: Path) -> tuple[Evaluation, ...]:
    history = []
    for row, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            history.append(_evaluation(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path}, line {row}, is not an evaluated step: {type(error).__name__}: {error}") from error
    return tuple(history)


def _read_environment(path: Path) -> dict[str, Any]:
    facts = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(facts, dict) or not isinstance(facts.get("seconds"), (int, float)):
        raise RunError(f"{path} must be a table with the run's `seconds`")
    return facts


def _read_samples(path: Path) -> pandas.DataFrame:
    frame = pandas.read_parquet(path)
    if missing := [name for name in SAMPLE_COLUMNS if name not in frame]:
        raise RunError(f"{path} has no column {missing[0]!r} (it needs {', '.join(SAMPLE_COLUMNS)})")
    return frame


def environment() -> dict[str, Any]:
    """Return what a run's figures may depend on beyond the recipe."""
    return {
        "steelyard": steelyard.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def check_directory(directory: Path, overwrite: bool) -> None:
    """Raise RunError if a run cannot be written into `directory`; nothing is changed.

    It must be missing or empty, or (with `overwrite`) hold nothing but a run.
    """
    try:
        found = {path.name for path in directory.iterdir()} if directory.exists() else set()
    except OSError as error:
        raise RunError(f"cannot write a run into {directory}: {error}") from error
    if found and not overwrite:
        raise RunError(f"{directory} is not empty; give another --out, or --overwrite to replace the run in it")
    leftover = tuple(f".{name}." for name in FILES)  # temporary files of a run that was killed
    if others := {name for name in found - set(FILES) if not name.startswith(leftover)}:
        raise RunError(f"{directory} holds more than a run ({min(others)}); give another --out")


def remove_run(directory: Path) -> None:
    """Remove a run's files and its directory; RunError if that holds anything else."""
    _prepare(directory, overwrite=True)
    directory.rmdir()


def _prepare(directory: Path, overwrite: bool) -> None:
    """Make `directory` an empty one, removing nothing but a run's own files, and these only if `overwrite`."""
    check_directory(directory, overwrite)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path in directory.iterdir():
            path.unlink()
    except OSError as error:
        raise RunError(f"cannot write a run into {directory}: {error}") from error


@contextmanager
def _blamed_on(recipe: Recipe, name: str) -> Iterator[None]:
    """Turn errors about values, which are about the recipe's settings, into RunError that names recipe and seed.

    Only while data load and a method fits; the error itself stays its cause.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, RuntimeError) as error:
        raise RunError(f"{name}, seed {recipe.seed}: {error}") from error


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was compiled with CUDA
        raise RunError(f"device {device!r} cannot be used here: {error}") from error


def _samples(reweighting: Reweighting, splits: Splits) -> pandas.DataFrame:
    frame = reweighting.to_frame()
    train = splits.train
    columns = {"target": train.targets, "environment": train.environment, "group": train.group, **splits.facts}
    return frame.assign(**{name: values.cpu().numpy() for name, values in columns.items() if values is not None})


def _line(evaluation: Evaluation) -> dict[str, Any]:
    visible = evaluation.visible
    return {
        "step": visible.step,
        "train": finite_json(asdict(visible.train)),
        "validation": finite_json(asdict(visible.validation)),
        "test": finite_json(asdict(evaluation.test)),
        "extra": finite_json(evaluation.extra),
    }


def _evaluation(line: Mapping[str, Any]) -> Evaluation:
    train, validation, test = (SplitMetrics.from_json(line[part]) for part in ("train", "validation", "test"))
    extra = {key: number(value) for key, value in line["extra"].items()}
    return Evaluation(Visible(int(line["step"]), train, validation), test, extra)
