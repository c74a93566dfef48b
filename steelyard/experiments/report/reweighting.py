"""The page about a `Reweighting` of one's own code: `steelyard.report`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steelyard._support import _check
from steelyard._support._files import write_text
from steelyard._support._text import printable
from steelyard.experiments.compare import plots
from steelyard.experiments.report.learned import svg_source
from steelyard.experiments.report.templating import template_named
from steelyard.reweight import Reweighting

__all__ = ["write_page"]

_SUSPECTS = 50
_VALUES = 20  # of a column


def write_page(
    result: Any, path: str | os.PathLike[str], *, title: str, columns: Mapping[str, Sequence[Any] | Tensor]
) -> None:
    """Write the page; see `steelyard.report`."""
    _check.instance("result", result, Reweighting, "a Reweighting, as Maple.fit returns it")
    if not len(result):
        raise ValueError("result has no samples; there is nothing to show")
    values = {name: _as_words(name, column, len(result)) for name, column in columns.items()}
    seen = result.expected_weights.detach().double().cpu()
    assert result.index is not None  # a Reweighting sees to it
    ids = result.index.tolist()
    places = {one: place for place, one in enumerate(ids)}
    first = [places[one] for one in result.suspects(min(_SUSPECTS, len(result))).tolist()]
    weights, kept = result.weights.detach().cpu().tolist(), result.probabilities.detach().cpu().tolist()
    page = template_named("reweighting.html.j2").render(
        title=printable(title),
        count=len(result),
        kept=float(result.probabilities.double().sum()),
        effective=float(seen.sum() ** 2 / seen.square().sum().clamp(min=1e-300)),
        light=int((seen < seen.mean() / 2).sum()),
        histograms=svg_source(plots.histograms(weights, kept)),
        steps=_steps(result),
        spreads=[(name, _spread(column, seen)) for name, column in values.items()],
        columns=list(values),
        suspects=[
            (rank, ids[place], kept[place], weights[place], [column[place] for column in values.values()])
            for rank, place in enumerate(first, 1)
        ],
    )
    write_text(path, page)


def _as_words(name: str, column: Sequence[Any] | Tensor, count: int) -> list[str]:
    """Return a column's values as text; ValueError where it has not one for each sample."""
    found = column.tolist() if hasattr(column, "tolist") else list(column)
    if len(found) != count:
        raise ValueError(f"columns[{name!r}] has {len(found)} entries, the result has {count} samples")
    return [printable(str(value)) for value in found]


def _spread(column: list[str], seen: Tensor) -> list[tuple[str, int, float, float, float]]:
    """Return of each value: rows, their share, their share of sum s w, mean s w; the most frequent values first."""
    members: dict[str, list[int]] = {}
    for place, value in enumerate(column):
        members.setdefault(value, []).append(place)
    most = sorted(members, key=lambda value: (-len(members[value]), value))[:_VALUES]
    total = max(float(seen.sum()), 1e-300)
    rows = []
    for value in most:
        own = seen[torch.tensor(members[value])]
        rows.append((value, len(own), len(own) / len(seen), float(own.sum()) / total, float(own.mean())))
    return rows


def _steps(result: Reweighting) -> Any:
    """Return the plot of the outer steps; None where the history has none."""
    found = [row for row in result.history if {"step", "outer_loss", "kept"} <= set(row)]
    rows = [{name: float(value) for name, value in row.items() if isinstance(value, (int, float))} for row in found]
    return svg_source(plots.outer_steps({"outer steps": rows}, len(result))) if rows else None
