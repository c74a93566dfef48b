"""Randomness that depends on where in a run one is, and on nothing that ran before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from steelyard._support._random import seeded

__all__ = ["derived", "generator", "global_state"]


def derived(seed: int, *place: int) -> int:
    """Return a seed in 0 .. 2^63 - 1 for a place in a run (round, purpose): different places, unrelated draws.

    Example:
        >>> derived(0, 1) == derived(0, 1), derived(0, 1) == derived(1, 0)
        (True, False)
    """
    return int(np.random.SeedSequence((seed, *place)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(seed: int, *place: int) -> torch.Generator:
    """Return a CPU generator with the derived seed."""
    return torch.Generator().manual_seed(derived(seed, *place))


@contextmanager
def global_state(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global random state inside of the block and put it back afterwards.

    For what takes no generator: dropout and torchvision's augmentations.
    """
    with seeded(device, seed):
        yield
