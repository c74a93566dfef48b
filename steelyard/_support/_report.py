"""`steelyard.report`: the door to a page, whose packages are those of the extra."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any

from steelyard._support._packages import EXPERIMENTS, needed_by

__all__ = ["report"]


def report(
    result: Any,
    path: str | os.PathLike[str],
    *,
    title: str = "Sample weights",
    columns: Mapping[str, Any] | None = None,
) -> None:
    """Write a page about the weights of one's own code: one HTML file, nothing loaded from elsewhere.

    It shows how many samples are kept, how keep-probabilities and weights spread (over all samples, and over the values
    of each column), how the outer steps went, and the samples that training can best do without.

    Args:
        result: a `Reweighting`: what `Maple.fit`, `online.result()` or `Reweighting.load` gave.
        path: of the page; what is there is replaced.
        title: of the page.
        columns: more of each sample by name, ``(n,)`` each in the order of ``result.index``: labels, groups, words.

    Raises:
        MissingPackage: the extra is not installed; the message has the line that installs it.
        TypeError: `result` is no `Reweighting`.
        ValueError: a column of another length, or no samples.

    Example:
        >>> steelyard.report(result, "page.html", columns={"label": data.targets})   # doctest: +SKIP
    """
    with needed_by("steelyard.report", EXPERIMENTS):
        room = importlib.import_module("steelyard.experiments.report.reweighting")
    room.write_page(result, path, title=title, columns={} if columns is None else columns)
