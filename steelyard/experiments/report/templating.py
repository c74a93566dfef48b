"""Templates of pages: every string is escaped, a name that is not there is an error."""

from __future__ import annotations

from pathlib import Path

import jinja2

__all__ = ["template_named"]


def template_named(name: str, *folders: Path) -> jinja2.Template:
    """Return a template of the `folders`, or of this room, whose style sheet all pages share."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent / "templates"]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template(name)
