"""What every call of ours is checked against in the tests: types by beartype, shapes by jaxtyping.

`--jaxtyping-packages` writes ``@jaxtyping.jaxtyped`` over every function of steelyard, local ones too. jaxtyping's own
decorator compiles two checks of a function where it is defined (a local one: each time that is reached) and runs both
on each call; small tests then spend three quarters of their time in it. The one here checks the same things in the same
scopes, once a call, by a check that is compiled when it is first needed.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from inspect import Parameter
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.door import die_if_unbearable

_CONF = BeartypeConf(violation_type=jaxtyping.TypeCheckError)
_SCOPE = jaxtyping.jaxtyped  # called with "context": a scope in which a name of a dimension has one size


def jaxtyped(wrapped: Any = None, *, typechecker: object = None) -> Any:
    """Check a function, or a dataclass' ``__init__``, on every call.

    Args:
        wrapped: what is decorated.
        typechecker: what the import hook was told; beartype.

    Raises:
        jaxtyping.TypeCheckError: by a call whose arguments or result are not what is written.
    """
    if wrapped is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if inspect.isclass(wrapped):
        if dataclasses.is_dataclass(wrapped) and "__init__" in vars(wrapped):
            wrapped.__init__ = _function(wrapped.__init__)
        return wrapped
    if isinstance(wrapped, (classmethod, staticmethod)):
        return type(wrapped)(_function(wrapped.__func__))
    if isinstance(wrapped, property):
        return property(*(one and _function(one) for one in (wrapped.fget, wrapped.fset, wrapped.fdel)))
    return _function(wrapped)


def _function(function: Any) -> Callable[..., Any]:
    config = jaxtyping.config
    singly = "<locals>" in function.__qualname__ or inspect.isgeneratorfunction(function)
    check = functools.partial(_by_argument, function) if singly else functools.cache(lambda: _compiled(function))

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if config.jaxtyping_disable:
            return function(*args, **kwargs)
        checked, has_shapes = check()
        if not has_shapes:
            return checked(*args, **kwargs)
        with _SCOPE("context"):
            return checked(*args, **kwargs)

    return wrapper


def _compiled(function: Any) -> tuple[Callable[..., Any], bool]:
    """Return the function with beartype's checks, and whether shapes are among them."""
    hints = _hints(function)
    copy = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    for name in ("__kwdefaults__", "__module__", "__qualname__"):
        setattr(copy, name, getattr(function, name))
    copy.__annotations__ = hints
    return beartype(conf=_CONF)(copy), any(map(_has_shapes, hints.values()))


_seen: dict[types.CodeType, tuple[inspect.Signature, dict[str, Any], bool]] = {}


def _by_argument(function: Any) -> tuple[Callable[..., Any], bool]:
    """The same of a local function, of which there may be thousands: what is written in it is read once.

    And of a generator, whose arguments beartype would look at out of the scope, when the first value is asked for.
    """
    if function.__code__ not in _seen:
        hints = _hints(function)
        _seen[function.__code__] = inspect.signature(function), hints, any(map(_has_shapes, hints.values()))
    signature, hints, has_shapes = _seen[function.__code__]

    def checked(*args: Any, **kwargs: Any) -> Any:
        for name, value in _arguments(signature, args, kwargs):
            if name in hints:
                die_if_unbearable(value, hints[name], conf=_CONF)
        result = function(*args, **kwargs)
        if "return" in hints:
            die_if_unbearable(result, hints["return"], conf=_CONF)
        return result

    return checked, has_shapes


def _arguments(signature: inspect.Signature, args: Any, kwargs: Any) -> Iterator[tuple[str, Any]]:
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        kind = signature.parameters[name].kind
        values = value if kind is Parameter.VAR_POSITIONAL else [value]
        yield from ((name, one) for one in (value.values() if kind is Parameter.VAR_KEYWORD else values))


def _hints(function: Any) -> dict[str, Any]:
    return {name: _hint(value, function.__globals__) for name, value in function.__annotations__.items()}


def _hint(annotation: Any, names: dict[str, Any]) -> Any:
    def of() -> None: ...

    of.__annotations__ = {"value": annotation}
    try:
        return typing.get_type_hints(of, names, include_extras=True)["value"]
    except Exception:  # noqa: BLE001 (as jaxtyping does: where a name is known to type checkers alone)
        return Any


def _has_shapes(hint: Any) -> bool:
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_has_shapes, hint if isinstance(hint, list) else typing.get_args(hint)))
