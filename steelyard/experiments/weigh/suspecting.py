"""`steelyard suspects`: every row of a table, in the order in which a person should look at its label."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from sklearn.metrics import roc_auc_score
from torch import Tensor

from steelyard._support._csv import table_text
from steelyard._support._files import write_text
from steelyard._support._outputs import writing
from steelyard._support._plain import plain
from steelyard.checkpoint import Journal
from steelyard.experiments.data import OwnArrays, OwnImages, OwnTable, Splits
from steelyard.experiments.data.table import Table
from steelyard.experiments.errors import RunError
from steelyard.experiments.models import MLP, Logistic
from steelyard.experiments.priors.label_noise import LabelNoise, label_noise
from steelyard.experiments.priors.out_of_fold import OutOfFold, OutOfFoldSettings, out_of_fold
from steelyard.experiments.priors.residuals import (
    Residuals,
    TargetNoise,
    far_off,
    out_of_fold_residuals,
    target_noise,
)
from steelyard.experiments.priors.suspicion import suspicion
from steelyard.experiments.training.problem import Problem
from steelyard.experiments.training.seeds import generator

__all__ = ["CSV", "PAGE", "Found", "Planted", "find_suspects", "folder_for", "remove_checkpoints", "write_table"]

CSV, PAGE, CHECKPOINT = "suspects.csv", "page.html", "checkpoint.safetensors"
_PLANTED_SHARE = 0.05
_PLANTED = 2  # a place in `seeds.derived`


@dataclass(frozen=True)
class Planted:
    """How well labels that were made wrong on purpose were found: what the method can do on this very table.

    Attributes:
        count: labels that were made wrong, at random among the rows whose labels seemed right. (Of two classes a
            label that was wrong before would have been made right.)
        auroc: of finding them among these rows, by suspicion.
        within: the share of them among the first `looked` of these rows.
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
        splits: all rows, see `whole_of`.
        table: as the user wrote it; None where there is none.
        scores: of every row, out of fold.
        suspicion: ``(n,)`` high = suspect.
        noise: how many labels seem wrong; and how classes seem confused, or how far right targets scatter.
        planted: what a check found; None where none was made.
    """

    splits: Splits
    table: Table | None
    scores: OutOfFold | Residuals
    suspicion: Float[Tensor, " n"]
    noise: LabelNoise | TargetNoise
    planted: Planted | None

    @property
    def order(self) -> Int[Tensor, " n"]:
        """The rows, the most suspect first."""
        return self.suspicion.argsort(descending=True, stable=True)

    @property
    def judged(self) -> Float[Tensor, "n *classes"]:
        """What the models say: probabilities of the classes, or standardised numbers."""
        return self.scores.predicted if isinstance(self.scores, Residuals) else self.scores.probabilities


@contextmanager
def folder_for(folder: Path, overwrite: bool, resume: bool) -> Iterator[None]:
    """Hold `folder` while the body fills it, see `_outputs.writing`; with `overwrite` what lies there is removed."""
    checkpoints = Journal.files(folder / CHECKPOINT)
    names = [*(path.name for path in checkpoints), CSV, PAGE]
    begun = any(path.is_file() for path in checkpoints)
    with writing(folder, names, overwrite=overwrite, resume=resume, begun=begun):
        if overwrite:
            for name in names:
                (folder / name).unlink(missing_ok=True)
        yield


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of work that is done."""
    for path in Journal.files(folder / CHECKPOINT):
        path.unlink(missing_ok=True)


def find_suspects(
    data: OwnTable | OwnArrays | OwnImages,
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
        data: the user's data.
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
    told["planted among"] = "the rows whose labels seem right"
    identity = {"work": hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest(), **splits.sources}
    try:
        journal = Journal(folder / CHECKPOINT, identity=identity, every=checkpoint_every, stop=stop)
        problem = Problem(splits, model, seed, journal)
        scores, noise, suspect = _judged(problem, settings, trained)
        seem_right = suspect.argsort(stable=True)[: max(2, round(len(suspect) * (1 - noise.share)))]
        planted = _plant(problem, settings, seem_right, lambda done: trained(settings.models + done)) if check else None
    except (ValueError, FloatingPointError) as error:
        raise RunError(f"{data.source}: {error}") from error
    table = None if isinstance(data, OwnArrays) else data.read()
    return Found(splits, table, scores, suspect, noise, planted)


def _judged(
    problem: Problem, settings: OutOfFoldSettings, trained: Callable[[int], None]
) -> tuple[OutOfFold | Residuals, LabelNoise | TargetNoise, Float[Tensor, " n"]]:
    """Return what models that did not see a row say of it, how many labels seem wrong, and how suspect each is."""
    targets = problem.splits.train.targets
    if problem.splits.target_scale is not None:
        found = out_of_fold_residuals(problem, settings, trained)
        return found, target_noise(found.residual, targets), far_off(found)
    scores = out_of_fold(problem, settings, trained)
    return scores, label_noise(scores.probabilities, targets), suspicion(scores, targets)


def write_table(found: Found, path: Path) -> None:
    """Write a row for each row of the user's file, the most suspect first."""
    measures, told = _measures(found), _labels(found)
    columns = ("suspect_rank", "id", "row", *told, *measures)
    values = torch.stack([one.double() for one in measures.values()], 1).tolist()
    labels = list(zip(*told.values(), strict=True))
    rows = [
        [rank, found.splits.ids[row], row, *labels[row], *values[row]]
        for rank, row in enumerate(found.order.tolist(), 1)
    ]
    write_text(path, table_text(columns, rows))


def _measures(found: Found) -> dict[str, Float[Tensor, " n"]]:
    """Return the columns of numbers."""
    scores, right = found.scores, found.noise.right
    if isinstance(scores, Residuals):
        deviation = (found.splits.target_scale or (0.0, 1.0))[1]
        off = deviation * scores.residual.double()
        return {"suspicion": found.suspicion, "residual": off, "right_probability": right}
    return {
        "suspicion": found.suspicion,
        "label_probability": scores.confidence,
        "right_probability": right,
        "aum": scores.aum,
        "lhd": scores.lhd,
        "disagreement": scores.disagreement,
    }


def _labels(found: Found) -> dict[str, list[object]]:
    """Return the columns of what was given and what is predicted: classes, or numbers in the target's unit."""
    given, scale = found.splits.train.targets, found.splits.target_scale
    if scale is not None:
        numbers = {"target": given, "predicted": found.judged}
        return {name: (scale[0] + scale[1] * one.double()).tolist() for name, one in numbers.items()}
    classes = {"label": given, "predicted": found.judged.argmax(1)}
    return {name: [found.splits.classes[code] for code in one.tolist()] for name, one in classes.items()}


def _plant(
    problem: Problem, settings: OutOfFoldSettings, seem_right: Int[Tensor, " k"], trained: Callable[[int], None]
) -> Planted:
    """Make a share of the labels wrong, at random, and look for them: another class, or another row's number.

    Both is done among the rows `seem_right`: wrong labels that were there before would else fill the head of the list.
    """
    data, classes = problem.splits.train, len(problem.splits.classes)
    draws = generator(problem.seed, _PLANTED)
    count = max(1, round(_PLANTED_SHARE * len(seem_right)))
    rows = seem_right[torch.randperm(len(seem_right), generator=draws)[:count]]
    labels = data.targets.clone()
    if classes:
        labels[rows] = (labels[rows] + torch.randint(1, classes, (count,), generator=draws)) % classes
    else:
        others = (rows + torch.randint(1, len(data), (count,), generator=draws)) % len(data)
        labels[rows] = data.targets[others]
    planted = replace(data, targets=labels)
    splits = replace(problem.splits, train=planted, validation=planted, test=planted)
    found = _judged(replace(problem, splits=splits), settings, trained)[2]
    wrong = torch.zeros(len(data), dtype=torch.bool)
    wrong[rows] = True
    found, wrong = found[seem_right], wrong[seem_right]
    looked = min(2 * count, len(found))
    first = found.argsort(descending=True, stable=True)[:looked]
    return Planted(count, auroc(found, wrong), float(wrong[first].double().sum()) / count, looked)


def auroc(scores: Float[Tensor, " n"], positive: Bool[Tensor, " n"]) -> float:
    """Return the probability that a positive sample has the higher score; ties count half."""
    return float(roc_auc_score(positive.numpy(), scores.double().numpy()))
