"""`steelyard suspects`: every row of a table, in the order in which a person should look at its label."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from sklearn.metrics import roc_auc_score
from torch import Tensor

from steelyard._support._csv import table_text
from steelyard._support._files import write_text
from steelyard._support._plain import plain
from steelyard.checkpoint import Journal
from steelyard.experiments.data import OwnTable, Splits
from steelyard.experiments.data.table import Table
from steelyard.experiments.errors import RunError
from steelyard.experiments.models import MLP, Logistic
from steelyard.experiments.priors.label_noise import LabelNoise, label_noise
from steelyard.experiments.priors.out_of_fold import OutOfFold, OutOfFoldSettings, out_of_fold
from steelyard.experiments.priors.suspicion import suspicion
from steelyard.experiments.runs.folder import check_place
from steelyard.experiments.training.problem import Problem
from steelyard.experiments.training.seeds import generator

__all__ = ["CSV", "PAGE", "Found", "Planted", "check_folder", "find_suspects", "remove_checkpoints", "write_table"]

CSV, PAGE, CHECKPOINT = "suspects.csv", "page.html", "checkpoint.safetensors"
_PLANTED_SHARE = 0.05
_PLANTED = 2  # a place in `seeds.derived`


@dataclass(frozen=True)
class Planted:
    """How well labels that were made wrong on purpose were found: what the method can do on this very table.

    Attributes:
        count: labels that were made wrong, at random.
        auroc: of finding them among all rows, by suspicion. (Labels that were wrong before count as right here.)
        within: the share of them among the first `looked` rows.
        looked: twice their number.
    """

    count: int
    auroc: float
    within: float
    looked: int


@dataclass(frozen=True, eq=False)
class Found:
    """What was found.

    Attributes:
        splits: all rows, see `OwnTable.whole`.
        table: as the user wrote it.
        scores: of every row, out of fold.
        suspicion: ``(n,)`` high = suspect.
        noise: how many labels seem wrong, and how classes seem confused.
        planted: what a check found; None where none was made.
    """

    splits: Splits
    table: Table
    scores: OutOfFold
    suspicion: Float[Tensor, " n"]
    noise: LabelNoise
    planted: Planted | None

    @property
    def order(self) -> Int[Tensor, " n"]:
        """The rows, the most suspect first."""
        return self.suspicion.argsort(descending=True, stable=True)


def check_folder(folder: Path, overwrite: bool, resume: bool) -> None:
    """Raise RunError if `folder` holds something and neither is wanted; with `overwrite` a checkpoint is removed."""
    check_place(folder)
    files = [*Journal.files(folder / CHECKPOINT), folder / CSV, folder / PAGE]
    there = next((path for path in files if path.is_file()), None)
    if there is not None and not (overwrite or resume):
        raise RunError(f"{there} is there already; give another --out, --resume to go on, or --overwrite to replace it")
    if overwrite:
        for path in files:
            path.unlink(missing_ok=True)


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of work that is done."""
    for path in Journal.files(folder / CHECKPOINT):
        path.unlink(missing_ok=True)


def find_suspects(
    data: OwnTable,
    model: MLP | Logistic,
    settings: OutOfFoldSettings,
    splits: Splits,
    folder: Path,
    *,
    seed: int,
    check: bool,
    checkpoint_every: int,
    trained: Callable[[int], None],
    stop: Callable[[], int],
) -> Found:
    """Judge every row by models that were not trained on it.

    Args:
        data: the table.
        model: what judges.
        settings: how.
        splits: what `data.whole()` gave.
        folder: where checkpoints are written; those of the same work are resumed.
        seed: of folds, parameters and batches.
        check: whether to plant wrong labels and look for them: the work twice.
        checkpoint_every: optimizer steps between two checkpoints.
        trained: called with the number of models that were trained so far.
        stop: see `Journal`.

    Raises:
        RunError: the folder has a checkpoint of other work, training failed, or a class has too few rows.
        Stopped: the work was asked to stop.
    """
    told = {"data": plain(data), "model": plain(model), "settings": plain(settings), "seed": seed, "check": check}
    identity = {"work": hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest(), **splits.sources}
    labels = splits.train.targets
    try:
        journal = Journal(folder / CHECKPOINT, identity=identity, every=checkpoint_every, stop=stop)
        problem = Problem(splits, model, seed, journal)
        scores = out_of_fold(problem, settings, trained)
        planted = _plant(problem, settings, lambda done: trained(settings.models + done)) if check else None
    except (ValueError, FloatingPointError) as error:
        raise RunError(f"{data.file}: {error}") from error
    noise = label_noise(scores.probabilities, labels)
    return Found(splits, data.read(), scores, suspicion(scores, labels), noise, planted)


def write_table(found: Found, path: Path) -> None:
    """Write a row for each row of the user's file, the most suspect first."""
    columns = (
        *("suspect_rank", "id", "row", "label", "predicted", "suspicion", "label_probability", "right_probability"),
        *("aum", "lhd", "disagreement"),
    )
    scores, splits = found.scores, found.splits
    predicted = scores.probabilities.argmax(1).tolist()
    labels = splits.train.targets.tolist()
    measures = [
        *(found.suspicion, scores.confidence, found.noise.right, scores.aum, scores.lhd, scores.disagreement),
    ]
    values = torch.stack([one.double() for one in measures], 1).tolist()
    rows = [
        [rank, splits.ids[row], row, splits.classes[labels[row]], splits.classes[predicted[row]], *values[row]]
        for rank, row in enumerate(found.order.tolist(), 1)
    ]
    write_text(path, table_text(columns, rows))


def _plant(problem: Problem, settings: OutOfFoldSettings, trained: Callable[[int], None]) -> Planted:
    """Make a share of the labels wrong, at random, and look for them."""
    data, classes = problem.splits.train, len(problem.splits.classes)
    draws = generator(problem.seed, _PLANTED)
    count = max(1, round(_PLANTED_SHARE * len(data)))
    rows = torch.randperm(len(data), generator=draws)[:count]
    labels = data.targets.clone()
    labels[rows] = (labels[rows] + torch.randint(1, classes, (count,), generator=draws)) % classes
    planted = replace(data, targets=labels)
    splits = replace(problem.splits, train=planted, validation=planted, test=planted)
    found = suspicion(out_of_fold(replace(problem, splits=splits), settings, trained), labels)
    wrong = torch.zeros(len(data), dtype=torch.bool)
    wrong[rows] = True
    looked = min(2 * count, len(data))
    first = found.argsort(descending=True, stable=True)[:looked]
    return Planted(count, auroc(found, wrong), float(wrong[first].double().sum()) / count, looked)


def auroc(scores: Float[Tensor, " n"], positive: Bool[Tensor, " n"]) -> float:
    """Return the probability that a positive sample has the higher score; ties count half."""
    return float(roc_auc_score(positive.numpy(), scores.double().numpy()))
