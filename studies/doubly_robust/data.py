"""Digits for DONE: all classes alike, or the last five with a fifth of their training samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from steelyard.bilevel.batch import Batch
from steelyard.experiments.active.images import Digits

__all__ = ["RARE", "balanced", "imbalanced"]

RARE = (5, 6, 7, 8, 9)
_KEPT = 5  # of so many samples of these one is kept


def balanced(seed: int) -> dict[str, Mapping[str, Any]]:
    """Return the splits that `seed` makes: 944 images to train on, 404 of validation, 449 of test."""
    splits = Digits(validation_share=0.3).load(seed)
    return {name: _part(getattr(splits, name)) for name in ("train", "validation", "test")}


def imbalanced(seed: int) -> dict[str, Mapping[str, Any]]:
    """Return the same, but of the classes 5 to 9 every fifth training sample alone; validation and test stay."""
    parts = balanced(seed)
    inputs, target = parts["train"]["inputs"], parts["train"]["target"]
    rare = torch.isin(target, torch.tensor(RARE))
    kept = ~rare
    for label in RARE:
        kept[(target == label).nonzero().flatten()[::_KEPT]] = True
    return {**parts, "train": {"inputs": inputs[kept], "target": target[kept]}}


def _part(data: Batch) -> dict[str, Any]:
    return {"inputs": data.inputs, "target": data.targets}
