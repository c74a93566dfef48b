"""All rows of a user's data as one split, for what holds rows out by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor

from steelyard.bilevel.batch import Batch
from steelyard.experiments.data.groups import PARTS
from steelyard.experiments.data.label_columns import check_filled, scale_of
from steelyard.experiments.data.labelled import Features, Labelled
from steelyard.experiments.data.splits import Splits
from steelyard.experiments.data.table import Table

__all__ = ["whole_of"]


def whole_of(
    own: Labelled, table: Table, features: Features, digests: Mapping[str, str], empty: Sequence[str]
) -> Splits:
    """Return all rows as the training split.

    Validation and test are the same rows again: nothing may be chosen, and nothing measured, by them.

    Args:
        own: what the columns of labels mean.
        table: these columns, a row a sample.
        features: see `Features`; asked for all rows.
        digests: see `OwnData.digests`.
        empty: values that stand for a missing one.

    Raises:
        DataError: a label is missing or no number, an id is repeated, or the target is the same in every row.
    """
    for column in filter(None, (own.target, own.id)):
        check_filled(table, column, empty)
    ids = own.ids_of(table)  # before features, which may take long
    targets, classes, scale = _targets(own, table)
    rows = torch.arange(len(table))
    inputs, notes = features(rows)
    environment = torch.zeros(len(table), dtype=torch.int64)
    if callable(inputs):
        same = inputs(rows, targets, environment, None)
    else:
        same = Batch.of(inputs, targets, environment=environment)
    return Splits(
        own.called,
        *(same, same, same),
        classes,
        ("all",),
        ids=tuple(ids),
        notes=(f"{len(table)} samples.", *notes),
        sources=dict(digests),
        target_scale=scale,
        rows=dict.fromkeys(PARTS, rows),
    )


def _targets(own: Labelled, table: Table) -> tuple[Shaped[Tensor, " n"], tuple[str, ...], tuple[float, float] | None]:
    """Return the targets, the classes, and of a regression mean and deviation by which targets are standardised."""
    if own.task == "classification":
        return *own.targets_of(table), None
    numbers = table.numbers(own.target)
    scale = scale_of(table, own.target, numbers)
    return ((numbers - scale[0]) / scale[1]).float(), (), scale
