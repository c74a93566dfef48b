"""Code of the user's own, named as "module:function": what is imported runs."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steelyard._support._check import nearest
from steelyard._support._errors import DataError

__all__ = ["check_function_name", "is_function_name", "load_function", "source_of"]

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


def is_function_name(name: str) -> bool:
    """Return whether `name` is of the form "module:function"; nothing is imported."""
    return _NAME.fullmatch(name) is not None


def check_function_name(field: str, name: str) -> str:
    """Return `name` if it is of the form "module:function"; ValueError otherwise."""
    if not is_function_name(name):
        raise ValueError(f"{field} must be 'module:function', as in 'my_data:splits', got {name!r}")
    return name


def load_function(name: str) -> Callable[..., Any]:
    """Import a module and return its function; everything that the module does on import is done.

    The working directory is put behind what Python searches, as `python -m` puts it before.

    Args:
        name: "module:function".

    Raises:
        DataError: there is no such module, it fails, or has no such function.
    """
    module, _, function = check_function_name("the function", name).partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    importlib.invalidate_caches()
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise DataError(f"{name}: the module {module!r} cannot be imported: {error}") from error
        raise DataError(
            f"{name}: there is no module {error.name!r}; begin in the folder of {module.partition('.')[0]}.py, or "
            "install it"
        ) from error
    except Exception as error:
        raise DataError(f"{name}: the module {module!r} cannot be imported: {_told(error)}") from error
    found = getattr(loaded, function, None)
    if not callable(found):
        told = nearest(function, [one for one in vars(loaded) if not one.startswith("_")])
        raise DataError(f"{name}: {loaded.__file__ or module} has no function {function!r}{told}")
    return found  # type: ignore[no-any-return]


def source_of(name: str) -> Path:
    """Return the file of the module in "module:function", which is imported; errors as `load_function`."""
    load_function(name)
    file = sys.modules[name.partition(":")[0]].__file__
    if file is None:
        raise DataError(f"{name}: the module has no file, which tells its version")
    return Path(file)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
