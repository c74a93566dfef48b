"""What data sets of one's own share: what they are called, and what a run keeps of their files."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from steelyard._support._text import printable

__all__ = ["OwnData", "check_distinct", "sha256"]


@dataclass(frozen=True, kw_only=True)
class OwnData(ABC):
    """What data sets of one's own share.

    Attributes:
        title: what tables, plots and pages call the data set (default: the file's name without its ending).
    """

    grayscale: ClassVar[bool] = False
    needs_root: ClassVar[bool] = False
    title: str = ""

    @property
    @abstractmethod
    def source(self) -> str:
        """The file, or the function, that the data come from."""

    @property
    @abstractmethod
    def story(self) -> str:
        """A sentence for the page."""

    @property
    def called(self) -> str:
        """The name in tables and of files; no data set that ships, nor its published figures, is called so."""
        own = re.sub(r"[^\w.-]+", "_", printable(self.title or Path(self.source).stem))
        return f"{self.name}-{own}"  # type: ignore[attr-defined]

    @property
    def on_disk(self) -> bool:
        """Whether inputs come batch by batch."""
        return False

    @property
    def code(self) -> tuple[str, ...]:
        """The user's functions that loading calls, "module:function"."""
        return ()

    @abstractmethod
    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of each file, by its path as given; DataError where one cannot be read."""


def check_distinct(name: str, values: Sequence[str]) -> None:
    """Raise ValueError if one of `values` stands there twice."""
    if len(set(values)) < len(values):
        twice = next(value for value in values if list(values).count(value) > 1)
        raise ValueError(f"{name} names {twice!r} twice")


def sha256(data: bytes) -> str:
    """Return the digest of a file's bytes, as it is filed with a run."""
    return hashlib.sha256(data).hexdigest()
