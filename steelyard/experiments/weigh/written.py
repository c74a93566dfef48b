"""What `steelyard weigh` writes for other programs: weights.csv and the models."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from steelyard._support._csv import table_text
from steelyard._support._files import write_text
from steelyard.experiments.data import OwnTable
from steelyard.experiments.data.groups import PARTS
from steelyard.experiments.weigh.plan import PLAIN
from steelyard.experiments.weigh.predictor import Predictor
from steelyard.experiments.weigh.work import Outcome

__all__ = ["COLUMNS", "MODEL", "PLAIN_MODEL", "WEIGHTS", "predictor_of", "suspects", "write_models", "write_weights"]

WEIGHTS, MODEL, PLAIN_MODEL = "weights.csv", "model.safetensors", "plain.safetensors"
COLUMNS = ("id", "row", "split", "weight", "keep_probability", "suspect_rank")


def suspects(outcome: Outcome) -> Int[Tensor, " n"]:
    """Return the positions ``(n,)`` of the training samples, the most suspect first; of equals the earlier first."""
    return outcome.suspicion.argsort(descending=True, stable=True)


def write_weights(outcome: Outcome, folder: Path) -> None:
    """Write a row for each row of the user's file, in its order.

    Columns: the id; the row (from 0, the header not counted); the split; and of training rows the weight, the
    keep-probability and the suspect rank (1 = most suspect). Other rows have none: nothing was learned of them. The
    split is train, validation or test, or "clean" for a row that is among the clean rows, by its id.
    Numbers are written in full, so that they are read as they were.
    """
    splits = outcome.splits
    rank = torch.empty_like(order := suspects(outcome))
    rank[order] = torch.arange(1, len(order) + 1)
    parts = [part for part in PARTS if not (outcome.clean and part == "validation")]
    table: dict[int, list[object]] = {
        row: [outcome.name_of(row), row, part, "", "", ""] for part in parts for row in splits.rows[part].tolist()
    }
    for row in range(outcome.own_rows):  # a row that is among the clean ones, too
        table.setdefault(row, [outcome.name_of(row), row, "clean", "", "", ""])
    found = zip(
        splits.rows["train"].tolist(),
        outcome.reweighting.weights.tolist(),
        outcome.reweighting.probabilities.tolist(),
        rank.tolist(),
        strict=True,
    )
    for row, *values in found:
        table[row][3:] = values
    write_text(folder / WEIGHTS, table_text(COLUMNS, [table[row] for row in sorted(table)]))


def predictor_of(outcome: Outcome, name: str) -> Predictor:
    """Return the model of a method, of the first seed, with what its inputs are made by."""
    splits = outcome.splits
    separator = outcome.data.separator if isinstance(outcome.data, OwnTable) else ","
    return Predictor(
        outcome.models[name],
        outcome.model,
        tuple(splits.train.inputs.shape[1:]),
        splits.classes,
        outcome.data.target,
        splits.encoding,
        separator,
        splits.target_scale,
    )


def write_models(outcome: Outcome, folder: Path) -> None:
    """Write the model that was trained on the weights, and the one of ordinary training."""
    predictor_of(outcome, outcome.plan.weighed).save(folder / MODEL)
    predictor_of(outcome, PLAIN).save(folder / PLAIN_MODEL)
