"""Read the IDX files in which MNIST is published (http://yann.lecun.com/exdb/mnist, "FILE FORMATS")."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from steelyard._support._files import open_file
from steelyard.experiments.errors import DataError

__all__ = ["read_idx"]

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path, dimensions: int, limit: int = 1 << 30) -> Tensor:
    """Return the uint8 tensor in an IDX file, plain or gzipped (by its first bytes, not by its name).

    Args:
        path: the file.
        dimensions: how many dimensions are expected (3 for images, 1 for labels).
        limit: refuse files that hold more bytes than this once unpacked.

    Raises:
        DataError: not an IDX file of unsigned bytes, wrong number of dimensions, truncated, too long, or corrupt.
    """
    data = _bytes(path, limit)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != _UNSIGNED_BYTE:
        raise DataError(f"{path} is not an IDX file of unsigned bytes (it begins with {data[:4].hex(' ')!r})")
    if data[3] != dimensions:
        raise DataError(f"{path} has {data[3]} dimensions, expected {dimensions}")
    header = 4 + 4 * dimensions
    if len(data) < header:
        raise DataError(f"{path} ends within its header")
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    if len(data) - header != math.prod(shape):
        raise DataError(
            f"{path} should hold {math.prod(shape)} bytes of data for shape {shape}, it holds {len(data) - header}; "
            "the file is truncated or damaged"
        )
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy())


def _bytes(path: Path, limit: int) -> bytes:
    try:
        with open_file(path) as plain:
            packed = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            with gzip.open(plain) if packed else nullcontext(plain) as file:
                data = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(data) > limit:
        raise DataError(f"{path} unpacks to more than {limit} bytes")
    return data
