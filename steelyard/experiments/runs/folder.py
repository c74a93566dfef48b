"""The folder of a run: which files it holds, who may write into it, and whose run lies there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors import SafetensorError

from steelyard._support import _outputs
from steelyard._support._errors import FolderError
from steelyard._support._files import clear, is_folder, read_bytes, remove_folder
from steelyard._support._outputs import LOCK
from steelyard._support._plain import plain
from steelyard._support._text import parse_json, shown
from steelyard.checkpoint import Journal
from steelyard.experiments.errors import LostError, RecipeError, RunError
from steelyard.experiments.priors import PRIOR
from steelyard.experiments.runs.recipe import Recipe
from steelyard.experiments.runs.schema import parse

__all__ = [
    "LOCK",
    "UNREADABLE",
    "as_read",
    "aside",
    "begin",
    "check_directory",
    "check_files",
    "check_ours",
    "check_place",
    "check_recipe",
    "holding",
    "identity_of",
    "is_finished",
    "read_json",
    "readable",
    "remove_run",
    "remove_traces",
]

CONFIG, ENVIRONMENT, METRICS = "config.json", "environment.json", "metrics.jsonl"
RESULT, REWEIGHTING, MODEL = "result.parquet", "reweighting.safetensors", "model.safetensors"
CHECKPOINT = "checkpoint.safetensors"
TRACES = tuple(path.name for path in Journal.files(Path(CHECKPOINT)))  # of a run that has not ended well
FILES = (CONFIG, ENVIRONMENT, METRICS, RESULT, REWEIGHTING, MODEL, PRIOR, *TRACES)
SIGNS = (METRICS, *TRACES[:2])  # of a run that has got somewhere
REMEDY = "put the file back, or run it again with --overwrite"
ACTIVE_STATE = "state.safetensors"  # of a run of active learning
UNREADABLE = (  # what readers of damaged files raise, Python's and safetensors' own
    *(OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, MemoryError),
    SafetensorError,
)
ASIDE = (".old", ".old.moving", ".old.dropped")  # folders for the run that another replaces, see `replacement`


def is_finished(directory: Path) -> bool:
    """Return whether the run in `directory` was carried out to its end."""
    return (directory / ENVIRONMENT).is_file()


def aside(directory: Path) -> list[Path]:
    """Return the folders in `directory` where a run lies that another replaces; RunError if one is not a folder."""
    found = [directory / name for name in ASIDE if os.path.lexists(directory / name)]
    if wrong := next((place for place in found if not is_folder(place)), None):
        raise RunError(f"{wrong} is not a folder that a run was moved into, but a link or a file; remove it")
    return found


def check_place(directory: Path, below: Path | None = None) -> None:
    """Raise RunError if `directory`, or a folder on the way to it from `below`, is a link, see `_outputs`."""
    with _said_of_a_run():
        _outputs.check_place(directory, below)


def check_ours(directory: Path, ours: Callable[[], bool]) -> None:
    """Raise LostError if `directory` is not `ours` any more, as `holding` says it."""
    if not ours():
        raise LostError(
            f"{directory} is no longer the folder of this run: it, or {LOCK} in it, was removed, moved or replaced "
            "meanwhile; nothing more is written there; put it back and go on by --resume"
        )


def check_directory(directory: Path, overwrite: bool, resume: bool = False) -> None:
    """Raise RunError if a run cannot be written into `directory`; nothing is changed.

    It must be missing or empty but for the state in which a run failed, or (with `overwrite` or `resume`) hold nothing
    but a run.
    """
    check_place(directory)
    aside(directory)
    try:
        found = {path.name for path in directory.iterdir()} - {LOCK, *ASIDE} if directory.exists() else set()
    except OSError as error:
        raise RunError(f"cannot write a run into {directory}: {error}") from error
    if found - {TRACES[2]} and not (overwrite or resume):
        unfinished = CONFIG in found and not is_finished(directory)
        go_on = "--resume to continue the unfinished run in it, " if unfinished else ""
        raise RunError(f"{directory} is not empty; give another --out, {go_on}or --overwrite to replace the run in it")
    if others := {name for name in found - set(FILES) if not _is_leftover(name)}:
        raise RunError(f"{directory} holds more than a run ({min(others)}); give another --out")


@contextmanager
def holding(directory: Path) -> Iterator[Callable[[], bool]]:
    """Hold the lock of `directory`, see `_outputs.holding`; what it refuses is RunError."""
    with ExitStack() as stack:
        with _said_of_a_run():
            ours = stack.enter_context(_outputs.holding(directory))
        yield ours


@contextmanager
def _said_of_a_run() -> Iterator[None]:
    try:
        yield
    except FolderError as error:
        raise RunError(str(error)) from error


def begin(
    directory: Path, recipe: Recipe, overwrite: bool, resume: bool, files: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Make `directory`, which is held, ready for a run of `recipe` on data made of `files` (see `Splits.sources`).

    Only a run's own files are removed, and with `overwrite` none (see `replaced.replacing`): with `resume` those that a
    crash left half written and, where there is no checkpoint yet, all of them.

    Raises:
        RunError: see `check_directory`; or a run of another recipe, or on other files, is there to be resumed.
    """
    check_directory(directory, overwrite, resume)
    if overwrite:
        return
    if resume:
        check_recipe(directory, recipe)
        check_files(directory, files)
    kept: set[str] = set()
    if resume and any((directory / name).exists() for name in TRACES[:2]):
        kept = {CONFIG, METRICS, PRIOR, *TRACES[:2]}
    _remove(directory, kept)


def check_recipe(directory: Path, recipe: object) -> None:
    """Raise RunError if the run in `directory`, where there is one, is not one of `recipe` (of any kind).

    A finished run of an earlier version may lack fields that recipes have since: it had their defaults.
    """
    path = directory / CONFIG
    if not path.is_file():
        return
    try:
        found = read_json(path)["recipe"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} cannot be read ({type(error).__name__}: {error}); --overwrite starts over") from error
    if is_finished(directory):
        with suppress(RecipeError):  # what is wrong with it is a difference too
            found = as_read(parse(type(recipe), found, str(path)))
    if field := _difference(found, as_read(recipe)):
        raise RunError(
            f"{directory} holds a run of another recipe: {field}; resume it with the recipe it was begun with, give "
            "another --out, or --overwrite to replace it"
        )


def check_files(directory: Path, files: Mapping[str, str]) -> None:
    """Raise RunError if the run in `directory`, where there is one, was begun on other bytes than `files` (SHA-256)."""
    path = directory / CONFIG
    if not (files and path.is_file()):
        return
    with readable(path):
        found = read_json(path).get("files", {})
        changed = next((name for name, digest in files.items() if found.get(name) != digest), None)
    if changed is not None:
        raise RunError(
            f"{directory} holds a run on another {changed}: the file has changed since (SHA-256 "
            f"{shown(found.get(changed))} there, {files[changed]!r} here); put back the file that it was begun with, "
            "give another --out, or --overwrite to replace it"
        )


def read_json(path: Path) -> Any:
    """Return what a file of JSON holds, see `parse_json`; OSError or ValueError where it cannot be read."""
    return parse_json(read_bytes(path))


def as_read(recipe: object) -> Any:
    """Return a recipe (of any kind) as its file reads."""
    return parse_json(json.dumps(plain(recipe)))


def identity_of(recipe: object, files: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Return what a `Journal` is told to know the checkpoints of `recipe` (of any kind), on `files`, by."""
    text = json.dumps(plain(recipe), sort_keys=True)
    recipes = {"recipe": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()}
    return {**recipes, **{f"file {name}": digest for name, digest in files.items()}}


def remove_run(directory: Path) -> None:
    """Remove a run's files and its directory; RunError if that holds anything else, or is being written."""
    with holding(directory):
        check_directory(directory, overwrite=True)
        with _written(directory):
            for folder in aside(directory):
                remove_folder(folder)
        _remove(directory, set())
    directory.rmdir()


def remove_traces(directory: Path) -> None:
    """Remove the checkpoints of a run that is finished."""
    for name in TRACES:
        (directory / name).unlink(missing_ok=True)


def _remove(directory: Path, kept: set[str]) -> None:
    with _written(directory):
        clear(directory, {LOCK, *kept})


@contextmanager
def _written(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write a run into {directory}: {error}") from error


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what a damaged file raises into RunError that names it and the remedy."""
    try:
        yield
    except RunError:
        raise
    except UNREADABLE as error:
        what = f"there is no field {error}" if isinstance(error, KeyError) else str(error)
        raise RunError(f"{path} cannot be read: {what}; {REMEDY}") from error


def _is_leftover(name: str) -> bool:
    """Return whether `name` is that of a temporary file of a run that was killed."""
    return name.startswith(tuple(f".{file}." for file in FILES))


def _difference(found: Any, wanted: Any, place: str = "recipe") -> str:
    """Return where two nested tables differ first, and how; "" where they do not."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in {**wanted, **found}:
            inner = name if place == "recipe" else f"{place}.{name}"
            if difference := _difference(found.get(name), wanted.get(name), inner):
                return difference
        return ""
    return "" if found == wanted else f"{place} is {shown(found)} there and {shown(wanted)} here"
