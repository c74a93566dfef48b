"""Runs that end before their time, for the tests of what is left of them."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["Killed", "lasting"]


class Killed(BaseException):
    """What a test raises where a process would die: nothing in the code catches it."""


def lasting(row: Mapping[str, float]) -> dict[str, str]:
    """Return a row of figures without those of time, comparable: the repr of NaN is that of NaN."""
    return {key: repr(value) for key, value in row.items() if not key.startswith("seconds")}
