"""For the reference: a docstring's "Example:" is the section that the parser calls "Examples:"; no lists of names."""

from __future__ import annotations

import re
from typing import Any

import griffe


class ExamplesSection(griffe.Extension):
    """Rename the section when a docstring is read; take ``__all__`` out when a module has been read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rename it."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)

    def on_module_members(self, *, mod: griffe.Module, **kwargs: Any) -> None:
        """Take the list of names out; what it says of the names (`exports`) is known by now."""
        mod.members.pop("__all__", None)
