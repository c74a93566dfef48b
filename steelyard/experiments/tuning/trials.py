"""Trials: settings of a recipe drawn at random from the ranges that its method's class declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from steelyard._support._check import nearest
from steelyard._support._plain import plain
from steelyard._support._text import few
from steelyard.experiments.errors import RecipeError
from steelyard.experiments.models import MLP, Logistic
from steelyard.experiments.runs.recipe import Recipe, load_recipe
from steelyard.experiments.training.ranges import Drawn, Range, hyperparameters

__all__ = ["Search", "Trial", "trials", "value_of"]

_ATTEMPTS = 20  # to draw settings that the recipe takes


@dataclass(frozen=True)
class Trial:
    """The settings of one trial.

    Attributes:
        number: from 0; trial 0 is the recipe as it stands.
        values: what was drawn, by field of the recipe.
    """

    number: int
    values: Mapping[str, float | int]

    @property
    def overrides(self) -> tuple[str, ...]:
        """The values as `load_recipe` takes them."""
        return tuple(f"{field}={value!r}" for field, value in self.values.items())


@dataclass(frozen=True)
class Search:
    """What a random search draws.

    Attributes:
        ranges: by field of the recipe, such as "method.alpha".
        alike: fields that take over the drawn value of another one.
    """

    ranges: Mapping[str, Range]
    alike: Mapping[str, str]

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        *,
        held: Sequence[str] = (),
        vary: Sequence[str] = (),
        given: Mapping[str, Range] | None = None,
    ) -> Search:
        """Return the search over what the method of `recipe` declares.

        Not drawn: what its class declares fixed; a setting that the recipe does not use (a batch size of 0, which is
        all samples); the batch size of nets on vectors, which SubpopBench holds, too.

        Args:
            recipe: whose method, and whose values say what is in use.
            held: fields that are not drawn.
            vary: draw these alone, of those that have a range.
            given: ranges of the user's own, of any field that is a number; they are drawn in any case.

        Raises:
            RecipeError: a field that has no range or is no number of the recipe; nothing is left to draw.
        """
        given = given or {}
        known = {f"method.{one.path}": one for one in hyperparameters(type(recipe.method), recipe.method)}
        for field in given:
            _check_number(field, recipe)
        for field in vary:
            if field not in given and (field not in known or known[field].range is None):
                ranged = [name for name, one in known.items() if one.range is not None]
                raise RecipeError(
                    f"--vary {field}: no range is declared for it{nearest(field, ranged)} (there is one for "
                    f"{few(ranged)}); give one by --range '{field}=U(0, 1)'"
                )
        ranges = {field: one.range for field, one in known.items() if one.range is not None}
        chosen = {
            field: one
            for field, one in ranges.items()
            if field not in given and (field in vary if vary else field not in held and _in_use(known[field], recipe))
        }
        chosen |= given
        if not chosen:
            raise RecipeError(f"there is nothing to draw for method {recipe.method.name!r}; give a --range")
        alike = {field: f"method.{one.like}" for field, one in known.items() if one.like and field not in chosen}
        return cls(chosen, alike)

    def draw(self, recipe: Recipe, seed: str) -> dict[str, float | int]:
        """Return a value for each field; each has a stream of its own, so that one more changes no other."""
        values: dict[str, float | int] = {}
        for field, one in self.ranges.items():
            value = one.draw(Random(f"{seed} {field}"))
            if one.of:
                whole = f"method.{one.of}"
                value = max(1, int(value * values.get(whole, value_of(whole, recipe))))
            values[field] = value
        return values | {field: values[like] for field, like in self.alike.items() if like in values}


def trials(name: str, overrides: Sequence[str], search: Search, count: int, seed: int) -> list[Trial]:
    """Return `count` trials of the recipe called `name`; the first is the recipe as it stands.

    A draw that the recipe refuses (its error says that settings do not fit each other) is drawn again. Trial k is the
    same for any `count` above k.

    Raises:
        RecipeError: every one of twenty draws is refused.
    """
    recipe = load_recipe(name, overrides)
    found = [Trial(0, {})]
    for number in range(1, count):
        refused: RecipeError | None = None
        for attempt in range(_ATTEMPTS):
            trial = Trial(number, search.draw(recipe, f"{seed} {number} {attempt}"))
            try:
                load_recipe(name, [*overrides, *trial.overrides])
            except RecipeError as error:
                refused = error
                continue
            found.append(trial)
            break
        else:
            raise RecipeError(f"no draw fits the recipe; the last: {refused}; give other ranges by --range")
    return found


def _in_use(one: Drawn, recipe: Recipe) -> bool:
    assert one.range is not None
    if one.default is None or (one.range.off is not None and one.default == one.range.off):
        return False
    return not (one.path.endswith("batch_size") and isinstance(recipe.model, (MLP, Logistic)))


def value_of(field: str, recipe: Recipe) -> Any:
    """Return what the recipe has at a field such as "method.alpha"; RecipeError if there is no such field."""
    value: Any = plain(recipe)
    for part in field.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise RecipeError(f"--range {field}: the recipe has no such field")
        value = value[part]
    return value


def _check_number(field: str, recipe: Recipe) -> None:
    value = value_of(field, recipe)
    if isinstance(value, bool) or not isinstance(value, (int, float, type(None))):
        raise RecipeError(f"--range {field}: the recipe has {value!r} there, which is no number")
