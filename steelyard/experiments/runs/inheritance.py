"""Recipes that begin from another one: `base = "..."` names it, and the recipe holds only what is different."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from steelyard._support._files import check_links, read_text
from steelyard._support._text import shown
from steelyard._support._toml import tomllib
from steelyard.experiments.errors import RecipeError

__all__ = ["DEEPEST", "merged", "read_with_bases"]

DEEPEST = 8
"""How many files a recipe may be made of, itself among them."""


def read_with_bases(path: Path, named: Callable[[str], Path]) -> tuple[dict[str, Any], tuple[Path, ...]]:
    """Return the table of the recipe at `path` with its bases merged in, and its files: itself, its base, and so on.

    `base` is a recipe's name, or the path of a .toml file in the recipe's folder or below it.

    Args:
        path: a TOML file.
        named: returns the file of a recipe by its name, RecipeError if there is none.

    Raises:
        RecipeError: a file that is missing, no TOML or no plain file; a `base` that is neither, leaves the folder,
            leads through a symbolic link or in a circle, or is one of more than `DEEPEST` files.

    Example:
        A recipe `mine.toml` beside `theirs.toml` (which has `seed = 1`, a model and a method)::

            base = "theirs.toml"
            seed = 2
    """
    files: list[Path] = []
    tables: list[dict[str, Any]] = []
    following: Path | None = path
    while following is not None:
        here, table = following, _read(following)
        if any(here.resolve() == other.resolve() for other in files):
            raise RecipeError(f"{files[-1]}: base leads in a circle: {' -> '.join(map(str, [*files, here]))}")
        if len(files) == DEEPEST:
            raise RecipeError(f"{files[-1]}: base: {path} is made of more than {DEEPEST} files; shorten the chain")
        files.append(here)
        tables.append(table)
        following = _base_of(here, table.pop("base"), named) if "base" in table else None
    whole: dict[str, Any] = {}
    try:
        for table in reversed(tables):
            whole = merged(whole, table)
    except RecursionError as error:
        raise RecipeError(f"{path}: its tables are nested too deeply") from error
    return whole, tuple(files)


def merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with what `own` changes: tables are merged field by field, all else is replaced.

    A table that has another `name` replaces the base's as a whole: settings of one method, model or optimizer mean
    nothing to another.

    Example:
        >>> merged({"seed": 1, "model": {"name": "mlp", "hidden": [8]}}, {"model": {"hidden": [9]}})
        {'seed': 1, 'model': {'name': 'mlp', 'hidden': [9]}}
        >>> merged({"model": {"name": "mlp", "hidden": [8]}}, {"model": {"name": "logistic"}})
        {'model': {'name': 'logistic'}}
    """
    whole = dict(base)
    for key, value in own.items():
        before = base.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping) and not _of_another(before, value):
            value = merged(before, value)
        whole[key] = value
    return whole


def _of_another(before: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    return "name" in before and "name" in value and before["name"] != value["name"]


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8, not TOML, a number of 5,000 digits
        raise RecipeError(f"{path} cannot be read as a recipe: {error}") from error


def _base_of(path: Path, base: object, named: Callable[[str], Path]) -> Path:
    """Return the file that `path` names as its base."""
    what = "a recipe's name, or the path of a .toml file in the same folder or below it"
    if not isinstance(base, str):
        raise RecipeError(f"{path}: base must be {what}, got {shown(base)}")
    if not base.endswith(".toml"):
        try:
            return named(base)
        except RecipeError as error:
            raise RecipeError(f"{path}: base: {error}") from error
    if any(kind(base).is_absolute() or kind(base).drive or ".." in kind(base).parts for kind in _KINDS):
        raise RecipeError(f"{path}: base must be {what}, got {shown(base)}, which leads out of it")
    found = path.parent / base
    try:
        check_links(found, path.parent)
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: base = {shown(base)} cannot be read: {error}") from error
    return found


_KINDS = (PurePosixPath, PureWindowsPath)  # a recipe means the same on every system
