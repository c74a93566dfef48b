"""How the weights spread over the columns of the user's table, its classes, groups and environments."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard.experiments.data import Splits
from steelyard.experiments.data.dates import DateOrder, as_day, written_day
from steelyard.experiments.data.table import as_number
from steelyard.experiments.weigh.work import Outcome

__all__ = ["ColumnSpread", "Part", "spreads"]

SHOWN = 6  # columns of the user's, those whose parts differ most
_PARTS = 6  # of a column
_QUARTERS = 4


@dataclass(frozen=True)
class Part:
    """The training rows that share a value.

    Attributes:
        name: the value, or the span of values.
        count: rows.
        before: their share of all training rows.
        after: their share of sum s w, of what training sees.
        mean: their mean s w.
    """

    name: str
    count: int
    before: float
    after: float
    mean: float

    @property
    def change(self) -> float:
        """By what factor their share grew."""
        return self.after / self.before


@dataclass(frozen=True)
class ColumnSpread:
    """A column's parts.

    Attributes:
        name: of the column.
        explained: the share of the variance of s w that lies between the parts, in [0, 1].
        parts: of it.
        kind: "label", "group", "environment", or "column".
    """

    name: str
    explained: float
    parts: tuple[Part, ...]
    kind: str


def spreads(outcome: Outcome) -> tuple[ColumnSpread, ...]:
    """Return the class' spread, that of groups and environments, and those of the columns whose parts differ most."""
    splits, train = outcome.splits, outcome.splits.train
    seen = outcome.reweighting.expected_weights.double()
    known = [_spread(outcome.data.target, "label", *_labels(splits), seen)]
    if splits.groups and train.group is not None:
        known.append(_spread("group", "group", train.group, splits.groups, seen))
    if len(splits.environments) > 1 and train.environment is not None:
        known.append(_spread("environment", "environment", train.environment, splits.environments, seen))
    columns = [_spread(name, "column", codes, names, seen) for name, codes, names in _columns(outcome)]
    columns = [one for one in columns if len(one.parts) > 1]
    return (*known, *sorted(columns, key=lambda one: -one.explained)[:SHOWN])


def _labels(splits: Splits) -> tuple[Int[Tensor, " n"], Sequence[str]]:
    """Return the class of each training row, of a regression the quarter that its target is in, and the names."""
    if splits.target_scale is None:
        return splits.train.targets, splits.classes
    mean, deviation = splits.target_scale
    return quarters(mean + deviation * splits.train.targets.double())


def _spread(
    name: str, kind: str, codes: Int[Tensor, " n"], names: Sequence[str], seen: Float[Tensor, " n"]
) -> ColumnSpread:
    total, overall, between, parts = float(seen.sum()), float(seen.mean()), 0.0, []
    for code, value in enumerate(names):
        member = codes == code
        count = int(member.sum())
        if not count:
            continue
        own = seen[member]
        between += count * (float(own.mean()) - overall) ** 2
        after = float(own.sum()) / total if total else 0.0
        parts.append(Part(value, count, count / len(seen), after, float(own.mean())))
    variance = float((seen - overall).square().sum())
    return ColumnSpread(name, between / variance if variance > 1e-12 else 0.0, tuple(parts), kind)


def _columns(outcome: Outcome) -> Iterator[tuple[str, Int[Tensor, " n"], list[str]]]:
    """Yield each column that the model sees, as the part of each training row and the parts' names."""
    table, encoding = outcome.table, outcome.splits.encoding
    if table is None or encoding is None:
        return
    rows = outcome.splits.rows["train"].tolist()
    for column in encoding.numbers:
        texts = [table.columns[column.name][row] for row in rows]
        if column.dates:
            yield column.name, *quarters(_days(texts, column.dates), written_day)
            continue
        yield column.name, *quarters(torch.tensor([as_number(text) for text in texts], dtype=torch.float64))
    for name in (one.name for one in encoding.categories):
        words = [table.columns[name][row].strip() or "(missing)" for row in rows]
        counts = Counter(words)
        most = sorted(counts, key=lambda word: (-counts[word], word))[: _PARTS - 1]
        places = {word: place for place, word in enumerate(most)}
        codes = torch.tensor([places.get(word, len(most)) for word in words])
        yield name, codes, [*most, "all others"]


def _days(texts: Sequence[str], order: DateOrder) -> Float[Tensor, " n"]:
    """Return the day of each date, NaN where it is missing."""
    days = [as_day(text, order) for text in texts]
    return torch.tensor([math.nan if day is None else day for day in days], dtype=torch.float64)


def quarters(
    values: Float[Tensor, " n"], written: Callable[[float], str] | None = None
) -> tuple[Int[Tensor, " n"], list[str]]:
    """Return the part of each number, a quarter of the training rows (the last part: missing ones), and the names.

    Args:
        values: NaN where one is missing.
        written: how a name shows a number; None: by as many digits as tell the bounds apart.
    """
    known = values[values.isfinite()]
    if not len(known):
        return torch.zeros(len(values), dtype=torch.int64), ["(missing)"]
    ordered = known.sort().values
    edges = sorted({float(ordered[min(len(ordered) - 1, k * len(ordered) // _QUARTERS)]) for k in range(1, _QUARTERS)})
    codes = torch.searchsorted(torch.tensor(edges, dtype=torch.float64), values, right=True)
    low, high = float(ordered[0]), float(ordered[-1])
    numbers = [low, *edges, high]
    bounds = _told_apart(numbers) if written is None else list(map(written, numbers))
    names = [f"{bounds[k]} to {'below ' if k < len(edges) else ''}{bounds[k + 1]}" for k in range(len(edges) + 1)]
    codes = torch.where(values.isfinite(), codes, len(names))
    return codes, [*names, "(missing)"]


def _told_apart(numbers: Sequence[float]) -> list[str]:
    written: list[str] = []
    for digits in (6, 9, 12, 17):
        written = [f"{number:.{digits}g}" for number in numbers]
        if len(set(written)) == len(set(numbers)):
            break
    return written
