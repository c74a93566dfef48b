"""What the tabular data sets share: columns to features, and samples to splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from steelyard.experiments.data.splits import deal
from steelyard.experiments.data.table import Table
from steelyard.experiments.errors import DataError

__all__ = ["deal_parts", "find", "one_hot"]


def find(root: Path | None, file: str, name: str) -> Path:
    """Return ``root/file``, or the file in the folder `name` under the root; DataError if it is in neither."""
    if root is None:
        raise DataError(f"{name} needs a data root (--data-root, or STEELYARD_DATA) that holds {file}")
    places = [root / file, root / name / file]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise DataError(f"{file} is not under {root}: looked for {' and '.join(map(str, places))}")
    return found


def one_hot(table: Table, categories: Mapping[str, Sequence[str]]) -> Float[Tensor, "n width"]:
    """Return a 0/1 column for each category of each column, in the order given; DataError for another category."""
    blocks = []
    for column, values in categories.items():
        codes = table.codes(column, {value: code for code, value in enumerate(values)})
        blocks.append(F.one_hot(codes, len(values)).float())
    return torch.cat(blocks, 1)


def deal_parts(
    strata: Int[Tensor, " n"], test_share: float, validation_share: float, seed: int
) -> tuple[Int[Tensor, " train"], Int[Tensor, " validation"], Int[Tensor, " test"]]:
    """Return positions of training, validation and test samples, dealt at random and stratified.

    The test split takes `test_share` of all, validation takes `validation_share` of the rest.
    """
    generator = torch.Generator().manual_seed(seed)
    rest, test = deal(strata, test_share, generator)
    train, validation = (rest[part] for part in deal(strata[rest], validation_share, generator))
    return train, validation, test
