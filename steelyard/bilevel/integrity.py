"""Is the record still true? What an estimator replays must be what the run did.

A record holds batches, weights and gradients by reference, and its parameters after the last step are the live ones.
Anything that was changed behind its back would give a wrong derivative without a sound; these checks make it an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Guard", "fingerprint", "guards", "in_one_piece", "pieces", "projection"]


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


def fingerprint(tensors: Iterable[Tensor]) -> Tensor:
    """Return a weighted sum of every tensor's bits ``(tensors,)``, read as integers of 64 bits, modulo 2^64.

    Versions do not see every write: fused optimizers and ``p.data`` leave them alone. The sum sees any write to one
    entry, and entries that change places; it takes two reads at full speed, and compares where the values are NaN.
    """
    sums: list[Tensor] = []
    ends: list[int] = []
    for tensor in tensors:
        sums += _sums(tensor.detach())
        ends.append(len(sums))
    if not sums:
        return torch.zeros(0, dtype=torch.int64)
    # One number for each place among all the sums: a tensor's share is the difference of two running totals.
    devices = {one.device for one in sums}
    flat = torch.cat(sums if len(devices) == 1 else [one.cpu() for one in sums])
    totals = torch.cat([flat.new_zeros(1), (flat * _odd(len(flat), flat.device)).cumsum(0)])
    borders = list(accumulate((len(one) for one in sums), initial=0))
    return totals[[borders[end] for end in ends]].cpu().diff(prepend=torch.zeros(1, dtype=torch.int64))


def _sums(tensor: Tensor) -> list[Tensor]:
    """Return sums of the bits of a tensor: of the rows and of the columns of a table of them, and what is left over.

    (That is what takes a read at full speed: a product with a number for each entry does not.)
    """
    flat = tensor.contiguous().view(-1)
    each = 8 // flat.element_size() if flat.element_size() < 8 else 1
    if flat.data_ptr() % 8 or flat.storage_offset() % each:
        flat = flat.clone()
    whole = flat.numel() // each * each
    found = []
    if whole < flat.numel():
        flat, rest = flat[:whole], flat[whole:]
        found.append(rest.view(torch.uint8).sum().view(1))
    bits = flat.view(torch.int64)
    rows = len(bits) // _WIDTH
    if rows:
        table = bits[: rows * _WIDTH].view(rows, _WIDTH)
        found += [table.sum(0), table.sum(1)]
        bits = bits[rows * _WIDTH :]
    found.append(bits)
    return found


_WIDTH = 4096


@lru_cache(maxsize=8)
def _odd(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, device=device) * -7046029254386353130 + 2862933555777941757


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
