"""What a net that is shown only the place knows of the object: in the test it must be at chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from steelyard._support._files import write_text
from steelyard.experiments.compare.table import Table
from steelyard.experiments.data.transforms import WATERBIRDS, evaluation_transform
from steelyard.experiments.models.backbone import Backbone
from studies.photographs.composition import PRESETS, Composition, Sample, read_pool
from studies.photographs.drawing import drawn
from studies.photographs.features import WHOLE
from studies.photographs.sets import Sets

__all__ = ["place_only", "report"]

_CHUNK = 64


def report(sets: Sets, seed: int, out: Path, told: Callable[[str], None], most: int = 2000) -> None:
    """Write `place.md`: test accuracy in the groups of a linear model that saw places without their objects.

    Args:
        sets: whose name says the composition; its photographs are read, nothing is written there.
        seed: the data seed.
        out: folder of the page.
        told: is told of the stages.
        most: samples of training and of test, the first ones.
    """
    composition = PRESETS[sets.name]
    pool = read_pool(sets.data_root, (*composition.objects, *composition.places))
    samples = composition.draw(pool, seed)
    train, test = ([one for one in samples if one.split == split][:most] for split in (0, 2))
    told(f"{len(train)} training and {len(test)} test images of places alone")
    network = Backbone(WHOLE)
    line = [sets.name, str(seed), *place_only(*(_features(part, composition, network) for part in (train, test)))]
    head = ("set", "data seed", "training", "test, mean of groups", *(f"group {group}" for group in range(4)))
    notes = [
        "Accuracy in per cent for the object's class of a logistic regression on the network's features of images "
        "without the object. 50 is chance for the mean of the four test groups; ± is one binomial standard error. The "
        "groups show what it does: it answers by the place."
    ]
    write_text(out / f"place_{sets.name}.md", Table(head, [line], notes).markdown())


Part = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Features, labels and groups."""


def place_only(train: Part, test: Part) -> list[str]:
    """Return the accuracies of a model of `train`: on it, over the test groups, and in each of them, as cells."""
    from sklearn.linear_model import LogisticRegression

    mean, deviation = train[0].mean(0), train[0].std(0) + 1e-6
    model = LogisticRegression(C=1e-3, max_iter=500).fit((train[0] - mean) / deviation, train[1])
    learned = float((model.predict((train[0] - mean) / deviation) == train[1]).mean())
    right = model.predict((test[0] - mean) / deviation) == test[1]
    shares = [float(right[test[2] == group].mean()) for group in range(4)]
    counts = [int((test[2] == group).sum()) for group in range(4)]
    error = math.sqrt(sum(share * (1 - share) / count for share, count in zip(shares, counts, strict=True))) / 4
    mean_cell = f"{100 * sum(shares) / 4:.1f} ± {100 * error:.1f}"
    return [f"{100 * learned:.1f}", mean_cell, *(f"{100 * share:.1f}" for share in shares)]


def _features(samples: Sequence[Sample], composition: Composition, network: Backbone) -> Part:
    module, transform = network.build(), evaluation_transform(WATERBIRDS)
    found = []
    with torch.no_grad():
        for first in range(0, len(samples), _CHUNK):
            some = samples[first : first + _CHUNK]
            images = torch.stack([transform(drawn(one, composition, with_object=False)) for one in some])
            found.append(module(images).numpy())
    labels = np.array([one.label for one in samples])
    return np.concatenate(found), labels, 2 * labels + np.array([one.place for one in samples])
