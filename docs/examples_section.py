"""For the reference: a docstring's "Example:" is the section that the parser calls "Examples:", code and not words."""

from __future__ import annotations

import re
from typing import Any

import griffe


class ExamplesSection(griffe.Extension):
    """Rename the section when a docstring is read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rename it."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
