"""The state of the global random generators, taken and put back."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy
import torch

__all__ = ["random_state", "restore_random_state", "seeded"]


def random_state() -> dict[str, Any]:
    """Return the states of the global generators: torch's (of the CPU and of every GPU in use), numpy's, Python's."""
    kind, key, *rest = cast(tuple[Any, ...], numpy.random.get_state(legacy=True))  # noqa: NPY002 (the global one)
    version, words, gauss = random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": (str(kind), torch.from_numpy(key.astype("int64")), *rest),
        "python": (version, torch.tensor(words, dtype=torch.int64), gauss),
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put the global generators into a state that `random_state` gave."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, key, *rest = state["numpy"]
    numpy.random.set_state((kind, key.numpy().astype("uint32"), *rest))  # noqa: NPY002
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Fork the random state of the CPU and of `device`, seeded; no other device is touched."""
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        # torch.manual_seed would reseed every GPU of the machine, also those that were not forked.
        torch.default_generator.manual_seed(seed)
        for number in devices:
            torch.cuda.default_generators[number].manual_seed(seed)
        yield
