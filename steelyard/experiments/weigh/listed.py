"""The rows that a person looks at first, each with the trusted rows that are most like it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
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
        picture: a small image as a data address; empty where rows are no images.
    """

    row: int
    place: str
    label: str
    distance: float
    values: tuple[str, ...]
    picture: str


@dataclass(frozen=True)
class Suspect:
    """A row whose label is suspect.

    Attributes:
        rank: from 1.
        row: in the user's data, from 0.
        name: its id.
        place: where it stands, such as "line 7".
        label: as given.
        predicted: the most probable class, or the number that is predicted.
        probability: of the predicted class; None in a regression.
        given: the probability of the given label; likewise.
        off: in a regression, the target less the prediction, in the target's unit; otherwise None.
        values: of the columns.
        neighbours: the nearest trusted rows.
        picture: a small image as a data address; empty where rows are no images.
    """

    rank: int
    row: int
    name: str
    place: str
    label: str
    predicted: str
    probability: float | None
    given: float | None
    off: float | None
    values: tuple[str, ...]
    neighbours: tuple[Neighbour, ...]
    picture: str


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
    judged: Float[Tensor, "k *classes"],
    trusted: tuple[Batch, Int[Tensor, " t"]],
    table: Table | None,
    columns: tuple[str, ...],
    picture: Callable[[int], str] = lambda row: "",
    neighbours: int = 3,
) -> tuple[Suspect, ...]:
    """Return the suspects at the positions `order` of the training samples.

    Args:
        splits: the data.
        names: the id of each of them.
        order: positions ``(k,)``, the most suspect first.
        judged: a model's probabilities ``(k, classes)``, or in a regression its standardised predictions ``(k,)``.
        trusted: see `trusted_rows`.
        table: the user's, for what stands in the rows.
        columns: of the table that are shown.
        picture: a row's image as a data address.
        neighbours: how many trusted rows are shown beside each.
    """
    found = []
    batch = splits.train.take(order)
    for place, position in enumerate(order.tolist()):
        row = int(splits.rows["train"][position])
        near = tuple(
            Neighbour(
                other,
                _place(table, other),
                _label(splits, trusted[0].targets[one]),
                distance,
                _values(table, other, columns),
                picture(other),
            )
            for one, other, distance in _nearest(batch.inputs[place], row, trusted, neighbours)
        )
        found.append(
            Suspect(
                place + 1,
                row,
                names[place],
                _place(table, row),
                _label(splits, batch.targets[place]),
                *_told(splits, batch.targets[place], judged[place]),
                _values(table, row, columns),
                near,
                picture(row),
            )
        )
    return tuple(found)


def _told(
    splits: Splits, target: Shaped[Tensor, ""], judged: Float[Tensor, "*classes"]
) -> tuple[str, float | None, float | None, float | None]:
    """Return what a model says: its answer, how probable that and the label are, how far the target is from it."""
    if splits.target_scale is not None:
        return _label(splits, judged), None, None, splits.target_scale[1] * float(target.double() - judged.double())
    predicted = int(judged.argmax())
    return splits.classes[predicted], float(judged[predicted]), float(judged[int(target)]), None


def _label(splits: Splits, target: Shaped[Tensor, ""]) -> str:
    """Return the name of a class, or a number in the target's own unit."""
    if splits.target_scale is None:
        return splits.classes[int(target)]
    mean, deviation = splits.target_scale
    return f"{mean + deviation * float(target):.6g}"


def _nearest(
    one: Float[Tensor, "*shape"], row: int, trusted: tuple[Batch, Int[Tensor, " t"]], count: int
) -> list[tuple[int, int, float]]:
    """Return place, row and distance of the trusted samples that are nearest to one, which is not among them."""
    samples, rows = trusted
    distance = _distances(one, samples.inputs)
    distance[rows == row] = torch.inf
    near = distance.argsort(stable=True)[:count]
    return list(zip(near.tolist(), rows[near].tolist(), distance[near].tolist(), strict=True))


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
