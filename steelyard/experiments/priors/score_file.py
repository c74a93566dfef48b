"""Scores of the user's own, from a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas
import torch
from jaxtyping import Float
from torch import Tensor

from steelyard._support._files import open_file, read_bytes
from steelyard._support._text import few
from steelyard.experiments.data.parquet import read_parquet
from steelyard.experiments.errors import DataError, RecipeError
from steelyard.experiments.priors._term import Term
from steelyard.experiments.training.problem import Problem

__all__ = ["ScoreFile"]


@dataclass(frozen=True)
class ScoreFile(Term):
    """Scores of your own, from a table with one row a sample.

    Attributes:
        path: a .csv or .parquet file with the columns "index" (the sample's id, as in a run's `result.parquet`) and
            `column`. A training sample without a row, or with an empty cell, has no score; ids of no training
            sample are passed over.
        column: where the scores are.
    """

    name: Literal["file"] = "file"
    path: str = ""
    column: str = "score"

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(self.path).suffix not in (".csv", ".parquet"):
            raise ValueError(f"path must name a .csv or .parquet file of scores, got {self.path!r}")

    def scores(self, problem: Problem) -> Float[Tensor, " n"]:
        """Return the scores ``(n,)``, NaN where missing.

        Raises:
            DataError: the file cannot be read.
            RecipeError: a column is missing or not numeric, an id is repeated, or no training sample has a row.
        """
        try:
            table = _read_csv(self.path) if self.path.endswith(".csv") else read_parquet(self.path)
        except (OSError, ValueError, OverflowError, MemoryError) as error:
            raise DataError(f"{self.path} cannot be read as a table of scores: {error}") from error
        for name in ("index", self.column):
            if name not in table or not pandas.api.types.is_numeric_dtype(table[name]):
                raise RecipeError(f"{self.path}: needs a numeric column {name!r}; it has {few(table.columns)}")
        if table["index"].duplicated().any():
            raise RecipeError(f"{self.path}: the id {table['index'][table['index'].duplicated()].iloc[0]} is repeated")
        ids = problem.splits.train.index
        if not table["index"].isin(ids.tolist()).any():
            raise RecipeError(f"{self.path}: no id in 'index' is that of a training sample")
        values = table.set_index("index")[self.column].reindex(ids.tolist()).to_numpy("float64", na_value=float("nan"))
        return torch.from_numpy(values.copy()).to(ids.device)

    def source(self) -> bytes:
        """Return the file's bytes (none if it cannot be read, which `scores` reports)."""
        try:
            return read_bytes(self.path)
        except OSError:
            return b""


def _read_csv(path: str) -> pandas.DataFrame:
    with open_file(path) as file:
        return pandas.read_csv(file)
