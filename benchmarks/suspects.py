"""Which score finds wrong labels: out-of-fold confidence, AUM, LHD, disagreement, and sums of their ranks.

    STEELYARD_DATA=DATA python -m benchmarks.suspects                  # Adult and COMPAS too; without it two data sets

Training rows (2,500 at most) of scikit-learn's breast cancer and digits, of Adult and COMPAS; a fifth of the labels
made wrong: "uniform": at random; "class": two fifths of every second class; "region": mostly where the column of the
largest variance is above its median. AUROC of the wrong labels, two seeds. Only training rows are looked at. "within":
the rank among the rows with the same label.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from sklearn import datasets
from sklearn.metrics import roc_auc_score

from steelyard.bilevel import Batch
from steelyard.experiments.data import COMPAS, Adult, Splits
from steelyard.experiments.models import MLP
from steelyard.experiments.priors.out_of_fold import OutOfFoldSettings, out_of_fold
from steelyard.experiments.training.problem import Problem
from steelyard.experiments.weigh.plan import training_for

MOST = 2500


def rows(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and right labels."""
    if name in ("breast_cancer", "digits"):
        return getattr(datasets, f"load_{name}")(return_X_y=True)
    splits = (Adult() if name == "adult" else COMPAS()).load(0, Path(os.environ["STEELYARD_DATA"]))
    parts = (splits.train, splits.validation)
    return torch.cat([p.inputs for p in parts]).numpy(), torch.cat([p.targets for p in parts]).numpy()


def problem(name: str, kind: str, seed: int, share: float = 0.2) -> tuple[Problem, np.ndarray]:
    """Return rows with wrong labels, and which these are."""
    inputs, labels = rows(name)
    random = np.random.RandomState(seed)
    own = random.permutation(len(labels))[:MOST]
    inputs, labels, classes = inputs[own].astype(np.float32), labels[own].astype(np.int64), labels.max() + 1
    chance = np.full(len(labels), share)
    if kind == "class":
        chance = np.where(labels % 2 == 1, 2 * share, 0.0)
    elif kind == "region":
        column = inputs[:, inputs.std(0).argmax()]
        chance = np.where(column > np.median(column), 1.8 * share, 0.2 * share)
    wrong = random.rand(len(labels)) < chance
    moved = np.ones(len(labels), int) if kind == "class" else random.randint(1, classes, len(labels))
    given = np.where(wrong, (labels + moved) % classes, labels)
    spread = inputs.std(0)
    scaled = torch.tensor((inputs - inputs.mean(0)) / np.where(spread > 0, spread, 1))
    data = Batch.of(scaled, torch.tensor(given), environment=torch.zeros(len(given), dtype=torch.int64))
    splits = Splits(name, data, data, data, tuple(map(str, range(classes))), ("all",))
    return Problem(splits, MLP(hidden=(64,), head="softmax"), seed), wrong


def scores(found: Problem) -> dict[str, np.ndarray]:
    """Return the scores of each sample, low = suspect."""
    data = found.splits.train
    settings = OutOfFoldSettings(training=training_for(len(data) * 4 // 5, 20))
    judged = out_of_fold(found, settings)
    labels = data.targets.numpy()
    ranks = {name: _rank(getattr(judged, name).numpy()) for name in ("confidence", "aum", "lhd", "disagreement")}
    within = np.zeros(len(labels))
    for one in np.unique(labels):
        within[labels == one] = _rank(judged.aum.numpy()[labels == one])
    both = ranks["confidence"] + ranks["aum"]
    return {
        "confidence": ranks["confidence"],
        "AUM": ranks["aum"],
        "-LHD": -ranks["lhd"],
        "disagreement": ranks["disagreement"],
        "confidence + AUM": both,
        "all four": both - ranks["lhd"] + ranks["disagreement"],
        "AUM + within": ranks["aum"] + within,
        "AUM + within / 4": ranks["aum"] + 0.25 * within,
    }


def _rank(values: np.ndarray) -> np.ndarray:
    return values.argsort().argsort() / len(values)


if __name__ == "__main__":
    torch.set_num_threads(1)
    known = ["breast_cancer", "digits", *(["adult", "compas"] if "STEELYARD_DATA" in os.environ else [])]
    table: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name in known:
        for kind in ("uniform", "class", "region"):
            for seed in (0, 1):
                made, wrong = problem(name, kind, seed)
                for score, values in scores(made).items():
                    table[score][kind].append(100 * roc_auc_score(wrong, -values))
    print("| score | uniform | class | region | mean | worst beside confidence |")
    print("|---|---|---|---|---|---|")
    base = [one for kind in table["confidence"].values() for one in kind]
    for score, kinds in table.items():
        every = [one for kind in kinds.values() for one in kind]
        cells = [f"{np.mean(kind):.1f}" for kind in kinds.values()]
        worst = min(a - b for a, b in zip(every, base, strict=True))
        print(f"| {score} | {' | '.join(cells)} | {np.mean(every):.1f} | {worst:+.1f} |")
