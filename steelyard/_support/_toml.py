"""`tomllib`, the standard library's TOML parser (before Python 3.11 the package that became it), and a writer."""

import json
import sys
from collections.abc import Mapping
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["toml_text", "tomllib"]


def toml_text(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> str:
    """Return a table of strings, numbers, booleans, lists and tables as TOML; what is None is left out.

    Names must be bare keys, as those of fields are.

    Args:
        table: what is written.
        path: where it stands in the table that is written as a whole.

    Example:
        >>> print(toml_text({"seed": 1, "model": {"name": "mlp", "hidden": [8]}}), end="")
        seed = 1
        <BLANKLINE>
        [model]
        name = "mlp"
        hidden = [8]
    """
    known = {key: value for key, value in table.items() if value is not None}
    lines = [f"{key} = {_value(value)}\n" for key, value in known.items() if not isinstance(value, Mapping)]
    head = [f"[{'.'.join(path)}]\n"] if path and (lines or not known) else []
    inner = [toml_text(value, (*path, key)) for key, value in known.items() if isinstance(value, Mapping)]
    return "\n".join(part for part in ("".join([*head, *lines]), *inner) if part)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {_value(one)}' for key, one in value.items() if one is not None)} }}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    return repr(value)  # whole numbers, numbers, inf and nan
