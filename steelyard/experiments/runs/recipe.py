"""Recipes: everything that defines a run but its seed's luck, as TOML shipped with the package or of the user's own."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from steelyard._support import _check
from steelyard._support._toml import tomllib
from steelyard.experiments.data import DataSet
from steelyard.experiments.errors import RecipeError
from steelyard.experiments.methods import Method, check_regression
from steelyard.experiments.models import Model
from steelyard.experiments.runs.inheritance import merged, read_with_bases
from steelyard.experiments.runs.schema import parse
from steelyard.experiments.runs.streamed_inputs import check_on_disk
from steelyard.experiments.training.selection import CRITERIA
from steelyard.experiments.training.selection import check_regression as check_regression_selection

__all__ = ["Recipe", "changed", "load_recipe", "names_in", "overridden", "read_table", "recipe_names", "table_of"]

_EXPERIMENTS = Path(__file__).parents[1]
_SHIPPED = _EXPERIMENTS / "recipes"
_FOLDERS = {"run": _SHIPPED, "active": _EXPERIMENTS / "active" / "recipes"}


@dataclass(frozen=True)
class Recipe:
    """A run: data x model x method, a seed, and how one step is chosen to stand for it.

    Attributes:
        data: the data set and its settings.
        model: the model and its settings.
        method: the method and its settings.
        seed: of the data split, the initial parameters and the method's draws.
        selection: the criterion of the "validation-selected" column, one of
            `steelyard.experiments.training.selection.CRITERIA`.
        train_floor: training accuracy below which a step is not selected, by the criteria that have a floor and in the
            column selected on test (which is there to compare with papers that select so). Set it between chance and
            what the data allow: a constant prediction has no penalty, so a floor below chance (or 0) lets the penalty
            criteria choose it. The default is just above chance for two classes.
        device: where to train, a torch device; whether this machine has it is seen when the run begins.
    """

    data: DataSet
    model: Model
    method: Method
    seed: int = 0
    selection: str = "validation_vrex"
    train_floor: float = 0.55
    device: str = "cpu"

    def __post_init__(self) -> None:
        _check.integer("seed", self.seed, low=0, high=2**63 - 1)  # what torch's generators take, without a sign
        _check.choice("selection", self.selection, CRITERIA)
        _check.in_range("train_floor", self.train_floor, low=0.0, high=1.0)
        self._check_task()
        if getattr(self.data, "on_disk", False):
            check_on_disk(self.data, self.method)
        try:
            torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(f"device must be a torch device such as 'cpu' or 'cuda:0', got {self.device!r}") from error

    def _check_task(self) -> None:
        """Raise ValueError unless model, method and selection are of the data's task."""
        head = getattr(self.model, "head", "softmax")
        if getattr(self.data, "task", "classification") == "classification":
            if head == "value":
                raise ValueError("model.head = 'value' predicts a number: it is for data.task = 'regression'")
            return
        if head != "value":
            raise ValueError(f"data.task = 'regression' needs model.head = 'value', got {head!r}")
        check_regression(self.method)
        check_regression_selection(self.selection)


def recipe_names() -> list[str]:
    """Return the names of the recipes shipped, sorted ("coloured_digits/erm", ...)."""
    return names_in(_SHIPPED)


def names_in(folder: Path) -> list[str]:
    """Return the names of the recipes in a folder, sorted: their paths in it without .toml.

    A file whose own name begins with _ is a base that several recipes share, and no recipe by itself.
    """
    return [name for name in _files_in(folder) if not _is_base(name)]


def _files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.toml"))


def _is_base(name: str) -> bool:
    return name.rpartition("/")[2].startswith("_")


def load_recipe(name: str, overrides: Sequence[str] = (), seed: int | None = None) -> Recipe:
    """Return a recipe by its name or the path of a .toml file.

    Args:
        name: one of `recipe_names()`, or a path that ends in .toml.
        overrides: ``"field.field=value"``, the value as in TOML (a bare word is taken as a string).
        seed: replaces the recipe's own.

    Raises:
        RecipeError: no such recipe, not TOML, a field that is unknown or does not fit.

    Example:
        >>> recipe = load_recipe("coloured_digits/erm", ["method.training.steps=20"], seed=3)
        >>> recipe.method.training.steps, recipe.seed
        (20, 3)
    """
    table, source = read_table(name, _SHIPPED, overrides, seed)
    return parse(Recipe, table, source)


def table_of(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the table of the recipe called `name`, not parsed yet; RecipeError as `read_table`."""
    return read_table(name, _SHIPPED, overrides)[0]


def changed(name: str, changes: Mapping[str, Any]) -> Recipe:
    """Return the recipe called `name` with `changes`, merged as in a file that has it as its base.

    Raises:
        RecipeError: see `load_recipe`.
    """
    table, source = read_table(name, _SHIPPED)
    return parse(Recipe, merged(table, changes), source)


def overridden(table: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a recipe's table with ``"field.field=value"`` put into it, see `load_recipe`.

    Example:
        >>> overridden({"seed": 1}, ["method.training.steps=20"])
        {'seed': 1, 'method': {'training': {'steps': 20}}}
    """
    whole = copy.deepcopy(dict(table))
    for override in overrides:
        _set(whole, override)
    return whole


def read_table(
    name: str, folder: Path, overrides: Sequence[str] = (), seed: int | None = None
) -> tuple[dict[str, Any], str]:
    """Return a recipe's table with its bases and overrides, not parsed yet, and where it comes from, for messages.

    Args:
        name: one of ``names_in(folder)``, or a path that ends in .toml.
        folder: where recipes with names lie.
        overrides, seed: see `load_recipe`.

    Raises:
        RecipeError: no such recipe, not TOML, a `base` that cannot be (see `read_with_bases`), a wrong override.
    """
    table, files = read_with_bases(_path(name, folder), lambda base: _path(base, folder, bases=True))
    for override in overrides:
        try:
            override.encode()
        except UnicodeEncodeError as error:
            raise RecipeError(f"--set {override!a} is not UTF-8, which tables of runs are") from error
        _set(table, override)
    if seed is not None:
        table["seed"] = seed
    source = " on ".join(map(str, files))  # a field may be wrong in any of them
    return table, f"{source} with {' '.join(f'--set {o}' for o in overrides)}" if overrides else source


def _path(name: str, folder: Path, *, bases: bool = False) -> Path:
    """Return the file of a recipe, or, with `bases`, of what one may begin from."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise RecipeError(f"the file's name {name!a} is not UTF-8, which tables of runs are; rename it") from error
    if name.endswith(".toml"):
        return Path(name)
    if name not in (known := _files_in(folder) if bases else names_in(folder)):
        for command, other in _FOLDERS.items():
            if other != folder and name in names_in(other):
                raise RecipeError(f"{name!r} is a recipe for another command: steelyard {command} {name}")
        raise RecipeError(
            f"there is no recipe {name!r}{_check.nearest(name, known)} "
            "(`steelyard recipes` lists them; a file of your own is named with its .toml)"
        )
    return folder / f"{name}.toml"


def _set(table: dict[str, Any], override: str) -> None:
    """Put one ``field.field=value`` into the table."""
    key, equals, text = override.partition("=")
    *parents, last = key.strip().split(".")
    if not equals or not last:
        raise RecipeError(f"--set {override}: expected field.field=value, as in --set method.training.steps=20")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text  # a bare word
    for parent in parents:
        inner = table.setdefault(parent, {})
        if not isinstance(inner, Mapping):
            raise RecipeError(f"--set {override}: {parent!r} is a value, it has no fields")
        table = inner  # type: ignore[assignment]
    table[last] = value
