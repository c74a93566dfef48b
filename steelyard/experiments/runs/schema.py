"""Turn a table (of TOML, or JSON) into a frozen dataclass by its type hints; errors name the source and the field."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from steelyard._support._check import nearest
from steelyard._support._text import shown
from steelyard.experiments.errors import RecipeError

__all__ = ["parse"]

T = TypeVar("T")
_LONGEST = 100  # letters of a name that is compared with the right ones


def parse(cls: type[T], table: Any, source: str, path: str = "") -> T:
    """Return a `cls` from `table`.

    Field types may be bool, int, float, str, Literal, ``tuple[X, ...]`` or ``tuple[X, Y]``, another dataclass, or a
    union: of dataclasses told apart by their field `name`, or of numbers and None. A float field takes an int; nothing
    else is converted.

    Args:
        cls: a dataclass.
        table: mapping from field names to values.
        source: where the table comes from, for messages.
        path: the field that `table` stands in, for messages.

    Raises:
        RecipeError: unknown field (with the nearest right one), missing field, wrong type, or a value that
            the dataclass itself refuses.
    """
    if not isinstance(table, Mapping):
        raise RecipeError(f"{source}: {path or 'the file'} must be a table of fields, got {shown(table)}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    for key in table:
        if key not in fields:
            raise RecipeError(
                f"{source}: unknown field {shown(_join(path, key))}{_near(key, fields)} "
                f"({path or 'a recipe'} has the fields {', '.join(fields)})"
            )
    for name, field in fields.items():
        no_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if name not in table and no_default:
            raise RecipeError(f"{source}: the field {_join(path, name)!r} is missing")
    values = {key: _convert(hints[key], value, source, _join(path, key)) for key, value in table.items()}
    try:
        return cls(**values)
    except (TypeError, ValueError, OverflowError) as error:
        raise RecipeError(f"{source}: {path or 'recipe'}: {error}") from error


def _convert(hint: Any, value: Any, source: str, path: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return parse(hint, value, source, path)  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        if any(dataclasses.is_dataclass(kind) for kind in arguments):
            return _variant(arguments, value, source, path)
        if isinstance(value, arguments) and not isinstance(value, bool):
            return value
        hint = float  # for the words
    if origin is Literal:
        if not any(type(value) is type(one) and value == one for one in arguments):  # (1 == True)
            raise RecipeError(
                f"{source}: {path} must be one of {', '.join(map(repr, arguments))}, got {shown(value)}"
                f"{_near(value, map(str, arguments))}"
            )
        return value
    if origin is tuple:
        return _tuple(arguments, value, source, path)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise RecipeError(f"{source}: {path} is a number that is too large: {shown(value)}") from None
    if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise RecipeError(f"{source}: {path} must be {_WORDS[hint]}, got {shown(value)} ({type(value).__name__})")


_WORDS = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


def _tuple(arguments: tuple[Any, ...], value: Any, source: str, path: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise RecipeError(f"{source}: {path} must be a list, got {shown(value)}")
    if arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        raise RecipeError(f"{source}: {path} must have {len(arguments)} entries, got {len(value)}")
    return tuple(
        _convert(hint, v, source, f"{path}[{k}]") for k, (hint, v) in enumerate(zip(arguments, value, strict=True))
    )


def _variant(kinds: tuple[Any, ...], value: Any, source: str, path: str) -> Any:
    by_name = {get_args(get_type_hints(kind)["name"])[0]: kind for kind in kinds}
    kinds_named = f"a `name` among {', '.join(by_name)}"
    if not isinstance(value, Mapping):
        raise RecipeError(f"{source}: {path or 'it'} must be a table of fields with {kinds_named}, got {shown(value)}")
    if "name" not in value:
        raise RecipeError(f"{source}: {path or 'it'} has no field 'name'; it needs {kinds_named}")
    name = value["name"]
    if not isinstance(name, str) or name not in by_name:
        raise RecipeError(
            f"{source}: {_join(path, 'name')} must be one of {', '.join(by_name)}, got {shown(name)}"
            f"{_near(name, by_name)}"
        )
    return parse(by_name[name], value, source, path)


def _near(value: object, names: Iterable[str]) -> str:
    """Return `_check.nearest` for a value that may be of any kind, and of any size."""
    return nearest(value, names) if isinstance(value, str) and len(value) <= _LONGEST else ""


def _join(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)
