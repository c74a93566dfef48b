"""What the commands of the studies share: one function becomes `python -m studies.NAME`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import tyro

from steelyard.cli.command import exit_status

__all__ = ["command_line"]


def command_line(study: Callable[..., None], name: str, arguments: Sequence[str] | None = None) -> int:
    """Run `study` with options of the command line (default: that of the process) and return the exit status.

    Args:
        study: its signature and docstring make the options.
        name: of the package below `studies`.
        arguments: the options.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    words = ["python", "-m", f"studies.{name}"]
    return exit_status(lambda: tyro.cli(study, prog=" ".join(words), args=given), [*words, *given])
