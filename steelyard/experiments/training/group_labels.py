"""Group labels for the methods that need them: those of the data, or label x colour of a coloured image."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from steelyard._support._text import few
from steelyard.bilevel.batch import Batch
from steelyard.experiments.errors import DataError

__all__ = ["Cell", "Field", "class_counts", "counts", "labelled", "with_groups"]

Field: TypeAlias = Literal["group", "environment"]

Cell: TypeAlias = Literal["class", "group", "environment"]
"""By what a method balances: the classes need no group label."""


def with_groups(data: Batch) -> Batch:
    """Return `data` with group ids.

    Ids that it has are kept. Two-channel images with one of the channels empty (coloured digits, Colored MNIST) get
    ``2 * label + colour``: the group that the shortcut makes. It is read off the image, a fact that a method is told
    only here, where it asks for group labels; and it is the noisy label's group, not the digit's.

    Raises:
        DataError: neither group ids nor such images.

    Example:
        >>> images = torch.zeros(2, 2, 3, 3)
        >>> images[0, 1], images[1, 0] = 1.0, 1.0
        >>> with_groups(Batch.of(images, torch.tensor([0, 1]))).group.tolist()
        [1, 2]
    """
    if data.group is not None:
        return data
    if data.inputs.ndim == 4 and data.inputs.shape[1] == 2:
        ink = data.inputs.abs().sum((2, 3))
        if bool(((ink > 0).sum(1) == 1).all()):
            return replace(data, group=2 * data.targets + ink.argmax(1))
    raise DataError(
        "this method needs group labels, and the data has none: no group ids, and its inputs "
        f"{tuple(data.inputs.shape)} are not images in one of two colours; take by = 'environment' where there is it"
    )


def labelled(data: Batch, by: Cell) -> Batch:
    """Return `data` with the ids of `by` as its group ids, for what reads groups and is told nothing else.

    Raises:
        DataError: no such labels.

    Example:
        >>> labelled(Batch.of(torch.zeros(3, 2), torch.tensor([0, 1, 1])), "class").group.tolist()
        [0, 1, 1]
    """
    if by == "group":
        return with_groups(data)
    if by == "class":
        return replace(data, group=data.targets)
    if data.environment is None:
        raise DataError("this method needs environment ids on the training samples, and there are none")
    return replace(data, group=data.environment)


def class_counts(data: Batch, classes: int) -> Int[Tensor, " classes"]:
    """Return how many samples each of the classes 0 to `classes` - 1 has.

    Raises:
        DataError: a class without a sample.
    """
    found = torch.bincount(data.targets, minlength=classes)
    if int(found.min()) == 0:
        raise DataError(
            f"class {int(found.argmin())} has no training sample (counts [{few(found.tolist())}]), and this method "
            "needs one of each"
        )
    return found


def counts(data: Batch, by: Field) -> Int[Tensor, " groups"]:
    """Return how many samples each id 0, 1, ... of `by` has.

    Raises:
        DataError: no such labels, or an id below the largest without a sample.
    """
    labels = data.group if by == "group" else data.environment
    if labels is None:
        raise DataError(f"this method needs {by} ids on the training samples, and there are none")
    if len(labels) and int(labels.max()) >= len(labels):  # also an id that no list of counts has room for
        raise DataError(
            f"{by} ids must be 0, 1, ... with a training sample each, got {int(labels.max())} as the largest"
        )
    found = torch.bincount(labels)
    if int(found.min()) == 0:
        raise DataError(f"{by} {int(found.argmin())} has no training sample (counts [{few(found.tolist())}])")
    return found
