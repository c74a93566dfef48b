"""Commands that were here once and are studies now, outside of the package."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["THEOREM", "moved_to"]

THEOREM = "python -m studies.theorem1"
_MOVED = {
    "disagreement": "python -m studies.dr_is",
    "robust": "python -m studies.robust",
    "priors": "python -m studies.priors",
}


def moved_to(given: Sequence[str]) -> str | None:
    """Return the command that does now what the words `given` did; None: they are a command still."""
    if given[:1] == ["bounds"] and "--quick" in given:
        return THEOREM
    return _MOVED.get(given[0]) if given else None
