"""What a recipe leaves open is settled when its run begins, and stays so when the run is resumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from steelyard._support._files import read_text
from steelyard._support._text import parse_json
from steelyard.distributed import Ranks
from steelyard.experiments.runs.folder import CONFIG
from steelyard.experiments.training.precision import measured

__all__ = ["settled"]

T = TypeVar("T")
_FIELD, _OPEN = "bfloat16", "auto"


def settled(recipe: T, directory: Path, resume: bool, ranks: Ranks) -> T:
    """Return `recipe` with true or false for every ``bfloat16 = "auto"``.

    Args:
        recipe: a dataclass with `device`.
        directory: of the run; with `resume`, one that lies there has chosen already.
        resume: see `execution.carried_out`.
        ranks: the processes of the run: bfloat16 is taken where it is faster on all.
    """
    if not any(True for _ in _open(recipe)):
        return recipe
    chosen = _chosen(directory) if resume else {}

    def choice(path: tuple[str, ...]) -> bool:
        stored: Any = chosen
        for name in path:
            stored = stored.get(name) if isinstance(stored, Mapping) else None
        return stored if isinstance(stored, bool) else measured(recipe.device).faster  # type: ignore[attr-defined]

    choices = {path: not ranks.any(not choice(path)) for path in _open(recipe)}
    return _with(recipe, choices, ())


def _chosen(directory: Path) -> Mapping[str, Any]:
    """Return the recipe of the run in `directory`; nothing where it cannot be read, which is said elsewhere."""
    try:
        found = parse_json(read_text(directory / CONFIG))["recipe"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _open(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the paths of the fields that are open."""
    for field in dataclasses.fields(value):
        one = getattr(value, field.name)
        if dataclasses.is_dataclass(one):
            yield from _open(one, (*path, field.name))
        elif field.name == _FIELD and one == _OPEN:
            yield (*path, field.name)


def _with(value: Any, choices: Mapping[tuple[str, ...], bool], path: tuple[str, ...]) -> Any:
    changes = {}
    for field in dataclasses.fields(value):
        one, place = getattr(value, field.name), (*path, field.name)
        if place in choices:
            changes[field.name] = choices[place]
        elif dataclasses.is_dataclass(one) and any(known[: len(place)] == place for known in choices):
            changes[field.name] = _with(one, choices, place)
    return dataclasses.replace(value, **changes)
