"""The state of the global random generators, taken and put back."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy
import torch

__all__ = ["all_seeded", "random_state", "restore_random_state", "seed_all", "seed_of", "seeded"]


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


def seed_of(*numbers: int) -> int:
    """Return a seed for torch made of these numbers."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "big") >> 1


@contextmanager
def all_seeded(seed: int) -> Iterator[None]:
    """Fork the random states of torch on the CPU, NumPy and Python, seeded."""
    with _kept(), torch.random.fork_rng(devices=[]):
        seed_all(seed)
        yield


def seed_all(seed: int) -> None:
    """Seed the global generators of torch on the CPU, NumPy and Python, for good: in a process of our own."""
    torch.default_generator.manual_seed(seed)
    numpy.random.seed(seed % 2**32)  # noqa: NPY002 (the global one)
    random.seed(seed)


@contextmanager
def _kept() -> Iterator[None]:
    """Put the states of NumPy and Python back afterwards."""
    of_numpy, of_python = numpy.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        numpy.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)


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
