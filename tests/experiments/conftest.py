"""A tiny MNIST in the published layout, and tiny recipes."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

TINY = {"train": 240, "t10k": 40}


def write_idx(path: Path, array: np.ndarray, packed: bool) -> None:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + (".gz" if packed else "")).write_bytes(gzip.compress(data) if packed else data)


def write_mnist(root: Path, packed: bool = True) -> Path:
    """Write images of 28 x 28 whose every pixel is 10 * (1 + digit), so that a test can tell the digit."""
    rng = np.random.default_rng(0)
    for part, count in TINY.items():
        digits = rng.permutation(np.arange(count) % 10)
        images = np.broadcast_to(10 * (1 + digits)[:, None, None], (count, 28, 28))
        write_idx(root / "MNIST" / "raw" / f"{part}-images-idx3-ubyte", images, packed)
        write_idx(root / "MNIST" / "raw" / f"{part}-labels-idx1-ubyte", digits, packed)
    return root


@pytest.fixture(scope="session")
def idx_writer() -> Callable[[Path, np.ndarray, bool], None]:
    return write_idx


@pytest.fixture(scope="session")
def mnist_writer() -> Callable[..., Path]:
    return write_mnist


@pytest.fixture(scope="session")
def mnist_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mnist(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def fast() -> dict[str, list[str]]:
    """Overrides that make a recipe of the demonstration take a fraction of a second."""
    short = ["method.training.steps=4", "method.training.evaluate_every=2", "model.hidden=[8]"]
    recipes = {f"coloured_digits/{name}": short for name in ("erm", "irmv1", "vrex", "oracle")}
    return {**recipes, "coloured_digits/maple": ["method.steps=2", "method.inner.steps=3", "model.hidden=[8]"]}
