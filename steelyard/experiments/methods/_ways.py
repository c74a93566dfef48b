"""How the inner runs of a recipe's MAPLE were trained: as one or one after the other, for the run's record."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

__all__ = ["TogetherSetting", "Ways"]

TogetherSetting: TypeAlias = Literal["auto", True, False]
"""`steelyard.reweight.together.TogetherName`, as a recipe's table is read."""


class Ways:
    """Counts outer steps (or rounds) by how their nets were trained; to be carried by the stage."""

    def __init__(self) -> None:
        self._as_one = self._others = 0
        self._apart = ""

    def note(self, apart: str) -> None:
        """Count a step; `apart` says why its runs were trained one after the other, and is empty where as one."""
        if apart:
            self._others += 1
            self._apart = self._apart or apart
        else:
            self._as_one += 1

    def told(self) -> str:
        """Return in words how they were trained.

        Example:
            >>> ways = Ways()
            >>> for apart in ("", "hooks", ""):
            ...     ways.note(apart)
            >>> ways.told()
            'as one 2 of 3 times, else one after the other: hooks'
        """
        if self._as_one and self._others:
            return f"as one {self._as_one} of {self._as_one + self._others} times, else {_way(self._apart)}"
        return _way(self._apart)

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, and the first reason."""
        return {"as one": self._as_one, "others": self._others, "apart": self._apart}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._as_one, self._others, self._apart = state["as one"], state["others"], state["apart"]


def _way(apart: str) -> str:
    if apart == "one run":
        return "one a step"
    return f"one after the other: {apart}" if apart else "as one"
