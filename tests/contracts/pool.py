"""One pool of samples, with everything that a score or a selection may be given of it, and how to change it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

Pool = dict[str, Tensor]

AXIS = {"draws": 1, "epochs": 1, "predictions": 1, "losses": 1, "gradients_of_steps": 1, "embeddings_of_steps": 1}
"""The axis of the samples, where it is not 0."""
APART = ("labelled", "labelled_probabilities", "targets", "target_labels", "target_draws", "target_steps", "rates")
"""What is of other samples, or of none."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pool(n: int = 24, seed: int = 0, dtype: torch.dtype = torch.float64) -> Pool:
    """Return a pool of n samples of 3 classes with 5 features, and all that models may say of it."""
    source = generator(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    probabilities = (2 * normal(n, 3)).softmax(1)
    made = {
        "probabilities": probabilities,
        "embeddings": normal(n, 5).abs() + 0.1,
        "labels": torch.randint(3, (n,), generator=source),
        "score": normal(n).abs() + 0.05,
        "draws": (2 * normal(6, n, 3)).softmax(2),
        "epochs": 2 * normal(4, n, 3),
        "predictions": torch.randint(3, (7, n), generator=source),
        "losses": normal(5, n).abs(),
        "gradients_of_steps": normal(2, n, 3),
        "embeddings_of_steps": normal(2, n, 5),
        "hidden": normal(n, 5),
        "other_hidden": normal(n, 5),
        "logits": normal(n, 3),
        "other_logits": normal(n, 3),
        "labelled": normal(4, 5).abs(),
        "labelled_probabilities": normal(4, 3).softmax(1),
        "targets": normal(9, 5).abs(),
        "target_labels": torch.randint(3, (9,), generator=source),
        "target_draws": normal(6, 8, 3).softmax(2),
        "target_steps": normal(2, 9, 3),
        "target_embeddings_of_steps": normal(2, 9, 5),
        "rates": torch.tensor([0.1, 0.05], dtype=torch.float64),
    }
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in made.items()}


def taken(samples: Pool, index: Tensor) -> Pool:
    """Return the pool of the samples `index`."""
    return {
        name: value if name in APART or name.startswith("target") else value.index_select(AXIS.get(name, 0), index)
        for name, value in samples.items()
    }


def as_arrays(samples: Pool) -> dict[str, Any]:
    """Return the pool in NumPy's arrays."""
    return {name: value.numpy() for name, value in samples.items()}


def reads(call: Callable[[Any], object], samples: Pool) -> set[str]:
    """Return the names of what `call` reads."""
    seen = set()

    class Watched(dict):
        def __getitem__(self, name: str) -> Tensor:
            seen.add(name)
            return super().__getitem__(name)

    call(Watched(samples))
    return seen


def refuses_what_is_not_finite(call: Callable[[Any], object], samples: Pool) -> None:
    """Every floating-point input with a NaN in it is refused, and so is one with an infinity."""
    for name in sorted(reads(call, samples)):
        if not samples[name].is_floating_point():
            continue
        for value in (np.nan, np.inf):
            bad = samples[name].clone()
            bad.view(-1)[1] = value
            with pytest.raises(ValueError, match=r"NaN|infinite|finite|sums to|>= 0"):
                call({**samples, name: bad})
