"""What a method has to keep where the inputs stay on disk: batches, and the same inputs at every reading."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from steelyard.experiments.data import DataSet, OwnPython
from steelyard.experiments.methods import Maple, Method
from steelyard.experiments.priors import EnsembleTerm, PriorSettings

__all__ = ["check_on_disk"]


def check_on_disk(data: DataSet, method: Method) -> None:
    """Raise ValueError if `method` cannot be carried out on inputs that stay on disk.

    It would hold all of them at once, or differentiate through a sample that is another image at every reading. The
    message names the field and what it can be.
    """
    if whole := [path for path, size in _batch_sizes(method, "method") if not size]:
        setting, remedy = "data.inputs = 'images' is decoded", "data.inputs = 'features'"
        if isinstance(data, OwnPython):
            setting, remedy = "data.stream = true is read", "data.stream = false"
        raise ValueError(
            f"{setting} batch by batch: {method.name} needs a batch_size above 0 wherever it "
            f"trains (set {', '.join(f'{path}.batch_size' for path in whole)}), or {remedy}"
        )
    if isinstance(method, Maple) and getattr(data, "augment", False):
        raise ValueError(
            "data.augment = true makes a sample another image at every reading, and maple differentiates by the "
            "samples as they are: set data.augment = false"
        )


def _batch_sizes(settings: Any, path: str) -> Iterator[tuple[str, int]]:
    """Yield (path, batch size) of all settings within `settings` that say how to train, and are used."""
    if hasattr(settings, "batch_size"):
        yield path, settings.batch_size
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, PriorSettings):
            yield from _of_prior(value, f"{path}.{field.name}")
        elif dataclasses.is_dataclass(value):
            yield from _batch_sizes(value, f"{path}.{field.name}")


def _of_prior(prior: PriorSettings, path: str) -> Iterator[tuple[str, int]]:
    """Yield those of a prior.

    Raises:
        ValueError: a score that is of an ensemble.
    """
    for number, score in enumerate(prior.scores):
        if not score.weight:
            continue
        place = f"{path}.scores[{number}]"
        if isinstance(score, EnsembleTerm):
            raise ValueError(
                f"{place}: {score.name!r} trains its proxies as one net that holds the images of a step once for each "
                "(and reads BatchNorm by its batch): on inputs that stay on disk take 'lhd', 'aum', or a 'file' of "
                "scores that were computed on data.inputs = 'features'"
            )
        yield from _batch_sizes(score, place)
    if prior.within != "all" and any(score.weight for score in prior.scores):
        yield from _batch_sizes(prior.identification, f"{path}.identification")
