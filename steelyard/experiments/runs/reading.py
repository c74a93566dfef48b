"""What a run was, read back from its folder; nothing in it is executed."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas

from steelyard._support import _check
from steelyard._support._text import printable
from steelyard.experiments.data.parquet import read_columns
from steelyard.experiments.errors import RunError
from steelyard.experiments.runs.folder import (
    ACTIVE_STATE,
    ASIDE,
    CONFIG,
    ENVIRONMENT,
    METRICS,
    REMEDY,
    RESULT,
    SIGNS,
    read_json,
    readable,
)
from steelyard.experiments.runs.log import read_metrics
from steelyard.experiments.runs.recipe import Recipe
from steelyard.experiments.runs.run_folder import RunFolder
from steelyard.experiments.training.evaluation import Evaluation

__all__ = ["Run", "read_run"]

SAMPLE_COLUMNS = {"index": "whole numbers", "weight": "numbers", "probability": "numbers", "target": "whole numbers"}
KNOWN_COLUMNS = {
    **dict.fromkeys(("environment", "group"), "whole numbers"),
    **dict.fromkeys(("label_flipped", "label_corrupted", "colour_agrees", "digit_agrees"), "true and false"),
    "found_group": "true and false",
    "maple_probability": "numbers",
    "id": "words",
}


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
            target, environment, group, the facts of the data set, what the method has found, and the user's id.
    """

    directory: Path
    name: str
    overrides: tuple[str, ...]
    recipe: Recipe
    history: tuple[Evaluation, ...]
    environment: Mapping[str, Any]
    samples: pandas.DataFrame | None


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
            f"the run in {place} did not finish: it has no {ENVIRONMENT}; resume it by --resume{_aside(place)}"
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
            table = _read_samples(place / RESULT, getattr(recipe.data, "task", "classification") == "regression")
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


def _read_samples(path: Path, regression: bool) -> pandas.DataFrame:
    kinds = {**SAMPLE_COLUMNS, "target": "numbers"} if regression else SAMPLE_COLUMNS
    frame = read_columns(path, kinds, KNOWN_COLUMNS)
    if "id" in frame:
        frame["id"] = frame["id"].map(printable)
    for name in frame.columns.drop("id", errors="ignore"):
        is_share = name in ("probability", "maple_probability")
        low, high = (0.0, 1.0) if is_share else (0, math.inf)
        low = -math.inf if name == "target" and regression else low
        if wrong := int((~frame[name].between(low, high) | (frame[name] == math.inf)).sum()):
            within = "in [0, 1]" if is_share else "finite and >= 0"
            raise ValueError(f"the column {name!r} must be {within}; {wrong} of {len(frame)} rows are not")
    if frame["index"].duplicated().any():
        raise ValueError("the column 'index' must name each sample once")
    return frame
