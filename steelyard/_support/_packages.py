"""Packages that only some uses need: imported where they are used, with an error that says how to install them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["EXPERIMENTS", "MissingPackage", "needed_by"]

EXPERIMENTS = "'steelyard[experiments]'"  # quoted as a shell wants it


class MissingPackage(ModuleNotFoundError):
    """A package that this use needs is not installed; the message ends with the line that installs it."""


@contextmanager
def needed_by(use: str, install: str) -> Iterator[None]:
    """Import packages in this block that only `use` needs.

    Args:
        use: what needs them, as the user asked for it.
        install: what to give to ``pip install``.

    Raises:
        MissingPackage: one of them is not installed. (A package that is there and does not import speaks for itself.)

    Example:
        >>> with needed_by("Unrolled(backend='torchopt')", install="torchopt"):
        ...     import no_such_package
        Traceback (most recent call last):
            ...
        steelyard._support._packages.MissingPackage: Unrolled(backend='torchopt') needs no_such_package, which is not
        installed: pip install torchopt
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "steelyard") or isinstance(error, MissingPackage):
            raise
        said = f"{use} needs {missing}, which is not installed: pip install {install}"
        raise MissingPackage(said, name=missing) from error
