"""The rows that a person looks at first, each with the trusted rows that are most like it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard.bilevel.batch import Batch
from steelyard.experiments.data import Splits
from steelyard.experiments.data.table import Table

__all__ = ["Neighbour", "Suspect", "listed", "trusted_rows"]

_CHUNK = 20_000


@dataclass(frozen=True)
class Neighbour:
    """A trusted row near a suspect.

    Attributes:
        row: in the user's data, from 0.
        place: where it stands there, such as "line 7".
        label: as given.
        distance: Euclidean, of the model's inputs.
        values: of the columns, as the user wrote them.
    """

    row: int
    place: str
    label: str
    distance: float
    values: tuple[str, ...]


@dataclass(frozen=True)
class Suspect:
    """A row whose label is suspect.

    Attributes:
        rank: from 1.
        row: in the user's data, from 0.
        name: its id.
        place: where it stands, such as "line 7".
        label: as given.
        predicted: the most probable class.
        probability: of the predicted class.
        given: the probability of the given label.
        values: of the columns.
        neighbours: the nearest trusted rows.
    """

    rank: int
    row: int
    name: str
    place: str
    label: str
    predicted: str
    probability: float
    given: float
    values: tuple[str, ...]
    neighbours: tuple[Neighbour, ...]


def trusted_rows(splits: Splits, suspicion: Float[Tensor, " n"], clean: bool) -> tuple[Batch, Int[Tensor, " k"]]:
    """Return the trusted samples and their rows: the clean ones, or the less suspect half of the training samples."""
    if clean:
        return splits.validation, splits.rows["validation"]
    half = suspicion.argsort(stable=True)[: max(1, len(suspicion) // 2)].sort().values
    return splits.train.take(half), splits.rows["train"][half]


def listed(
    splits: Splits,
    names: list[str],
    order: Int[Tensor, " k"],
    probabilities: Float[Tensor, "k classes"],
    trusted: tuple[Batch, Int[Tensor, " t"]],
    table: Table | None,
    columns: tuple[str, ...],
    neighbours: int = 3,
) -> tuple[Suspect, ...]:
    """Return the suspects at the positions `order` of the training samples.

    Args:
        splits: the data.
        names: the id of each of them.
        order: positions ``(k,)``, the most suspect first.
        probabilities: ``(k, classes)`` of the classes, from a model.
        trusted: see `trusted_rows`.
        table: the user's, for what stands in the rows.
        columns: of the table that are shown.
        neighbours: how many trusted rows are shown beside each.
    """
    found = []
    batch = splits.train.take(order)
    samples, rows = trusted
    for place, (position, target) in enumerate(zip(order.tolist(), batch.targets.tolist(), strict=True)):
        row = int(splits.rows["train"][position])
        distance = _distances(batch.inputs[place], samples.inputs)
        distance[rows == row] = torch.inf
        near = distance.argsort(stable=True)[:neighbours].tolist()
        chance = probabilities[place]
        predicted = int(chance.argmax())
        found.append(
            Suspect(
                place + 1,
                row,
                names[place],
                _place(table, row),
                splits.classes[target],
                splits.classes[predicted],
                float(chance[predicted]),
                float(chance[target]),
                _values(table, row, columns),
                tuple(
                    Neighbour(
                        int(rows[one]),
                        _place(table, int(rows[one])),
                        splits.classes[int(samples.targets[one])],
                        float(distance[one]),
                        _values(table, int(rows[one]), columns),
                    )
                    for one in near
                ),
            )
        )
    return tuple(found)


def _distances(one: Float[Tensor, " *shape"], others: Float[Tensor, "t *shape"]) -> Float[Tensor, " t"]:
    flat = one.flatten()[None]
    return torch.cat([torch.linalg.vector_norm(part.flatten(1) - flat, dim=1) for part in others.split(_CHUNK)])


def _place(table: Table | None, row: int) -> str:
    if table is None:
        return f"row {row}"
    own = next((start for start, _ in reversed(table.more) if row >= start), None)
    return table.line(row) if own is None else f"{table.line(row)} of the clean rows"


def _values(table: Table | None, row: int, columns: tuple[str, ...]) -> tuple[str, ...]:
    return () if table is None else tuple(table.columns[name][row] for name in columns)
