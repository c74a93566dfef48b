"""The rows of a `summary.json` under results/: one for each figure that a document may quote."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["summary_row"]


def summary_row(
    *,
    recipe: str,
    dataset: str,
    method: str,
    metric: str,
    selection: str,
    mean: float | None,
    std: float | None,
    seeds: Iterable[int],
    command: str,
    interval: tuple[float, float] | None = None,
) -> dict[str, object]:
    """Return a row; figures to six digits after the point, None where there is none (or NaN).

    Args:
        recipe: what was carried out. dataset, method: on what, and how.
        metric: what is measured. selection: the step at which, by what it was chosen; "last" or "none".
        mean, std: over `seeds`, or over what `method` says.
        seeds: of the runs.
        command: what makes it again.
        interval: of 95 % over the test samples, where it is known; without it the row has no such field.
    """
    row: dict[str, object] = {
        "recipe": recipe,
        "dataset": dataset,
        "method": method,
        "metric": metric,
        "selection": selection,
        "mean": _rounded(mean),
        "std": _rounded(std),
        "seeds": list(seeds),
        "command": command,
    }
    return row if interval is None else {**row, "interval": [_rounded(end) for end in interval]}


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(float(value), 6)
