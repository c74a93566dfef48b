"""Is the record still true? What an estimator replays must be what the run did.

A record holds batches, weights and gradients by reference, and its parameters after the last step are the live ones.
Anything that was changed behind its back would give a wrong derivative without a sound; these checks make it an error.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Guard", "changed", "guards", "in_one_piece", "pieces", "projection"]


class Guard(NamedTuple):
    """A tensor that must stay as it is, and its version when it was noted."""

    what: str
    tensor: Tensor
    version: int

    @property
    def broken(self) -> bool:
        """Whether the tensor was written to since."""
        return self.tensor._version != self.version


def guards(named: Iterable[tuple[str, Tensor]]) -> list[Guard]:
    """Note the present versions. (Inference tensors have none; torch itself refuses to change them in place.)"""
    return [Guard(what, tensor, tensor._version) for what, tensor in named if not tensor.is_inference()]


def changed(kept: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> list[str]:
    """Return the names of what is `now` not, bit for bit, what the copies `kept` hold.

    Versions do not see every write: fused optimizers and ``p.data`` leave them alone. Bits are compared, so a NaN is
    equal to itself, and 0 not to -0.
    """
    names = list(kept)
    differs = [_differs(kept[name], now[name]) for name in names]
    told = _together([one for one in differs if isinstance(one, Tensor)])
    return [name for name, one in zip(names, differs, strict=True) if (next(told) if isinstance(one, Tensor) else one)]


def _differs(one: Tensor, other: Tensor) -> bool | Tensor:
    """Return whether two tensors differ, on a device as a tensor that is not waited for."""
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return True
    if _MEMCMP is not None and _is_plain(one) and _is_plain(other):  # half of NumPy's time, a fifth of `torch.equal`'s
        return _MEMCMP(one.data_ptr(), other.data_ptr(), one.numel() * one.element_size()) != 0
    one, other = one.detach(), other.detach()
    if one.is_contiguous() and other.is_contiguous():
        one, other = one.view(-1), other.view(-1)
    size = 8 if _in_eights(one) and _in_eights(other) else one.element_size()
    here, there = one.view(_INTEGERS[size]), other.view(_INTEGERS[size])
    if here.device.type == "cpu":  # (NumPy compares five times as fast as `torch.equal`)
        return not np.array_equal(here.numpy(), there.numpy())
    return (here != there).any()


def _comparison() -> Any:
    """Return C's comparison of memory; None where the C library is not where it is looked for."""
    try:
        found = (ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)).memcmp
    except (AttributeError, OSError):
        return None
    found.argtypes, found.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t], ctypes.c_int
    return found


_MEMCMP = _comparison()


def _is_plain(tensor: Tensor) -> bool:
    """Whether the tensor's entries are a piece of this process's memory, as they are."""
    known = type(tensor) is Tensor or type(tensor) is nn.Parameter
    return known and tensor.is_cpu and tensor.is_contiguous() and not (tensor.is_neg() or tensor.is_conj())


def _in_eights(tensor: Tensor) -> bool:
    """Whether the bytes can be read eight at a time."""
    size = tensor.element_size()
    return (
        tensor.ndim == 1
        and tensor.is_contiguous()
        and not (tensor.numel() * size % 8 or tensor.data_ptr() % 8 or tensor.storage_offset() * size % 8)
    )


def _together(differs: list[Tensor]) -> Iterator[bool]:
    return iter(torch.stack(differs).tolist() if differs else [])


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def projection(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return <g, r> and |g| ``(2,)`` of a gradient g by name.

    r is random with entries of mean 0 and variance 1, and always the same: one vector, and for every piece of g a sign
    and a shift of it.
    """
    if not tensors:
        return torch.zeros(2, dtype=torch.float64)
    flat = [one.detach().flatten() for one in tensors.values()]
    flat = [one if one.element_size() >= 4 else one.float() for one in flat]
    along = []
    for number, piece in enumerate(piece for one in flat for piece in one.split(_PROJECTED)):
        start, sign = (number * 7919) % _SHIFTS, 1 - 2 * (number * 2654435761 >> 7 & 1)
        along.append(sign * torch.dot(piece, _random(piece.dtype, piece.device)[start : start + len(piece)]))
    dtype = max((one.dtype for one in flat), key=lambda dtype: dtype.itemsize)
    sizes = torch.stack([one.to(dtype) for one in torch._foreach_norm(flat)])
    return torch.stack([torch.stack([one.to(dtype) for one in along]).sum(), torch.linalg.vector_norm(sizes)])


_PROJECTED, _SHIFTS = 1 << 22, 4096


@lru_cache(maxsize=8)
def _random(dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_PROJECTED + _SHIFTS, generator=generator, dtype=torch.float64).to(device, dtype)


def pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the entries ``(k,)`` in pieces that stay in a CPU's second cache once they are float64."""
    return tensor.detach().flatten().split(_piece(tensor))


def in_one_piece(tensor: Tensor) -> bool:
    """Whether `pieces` leaves it whole."""
    return tensor.numel() <= _piece(tensor)


def _piece(tensor: Tensor) -> int:
    return 1 << 16 if tensor.device.type == "cpu" else 1 << 24
