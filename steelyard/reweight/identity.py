"""What a computation is, as text: by this a checkpoint of another one is known and refused.

The text is the same in another process and on another number of ranks, and says nothing of where a run has come to.
"""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from steelyard._support._nested import named_tensors
from steelyard.bilevel import Batch, Streamed
from steelyard.distributed import ALONE, Ranks

__all__ = ["described", "samples", "settings"]

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}  # by size of an entry in bytes; others are int64
_PIECE = 1 << 15  # entries at a time: their copy as integers of 64 bits stays in a cache
_PLAIN = (type(None), bool, int, float, str, bytes, torch.dtype)
_NUMBERED = re.compile(r"[a-z]+:\d+")  # a device
_NESTED = 8  # levels; deeper, or a cycle, is left out


def settings(value: object) -> dict[str, Any]:
    """Return the settings of an object by name: a dataclass's fields, and what its constructors name and it holds.

    (An attribute that no constructor names may be where a run has come to.)
    """
    found: dict[str, Any] = {}
    if is_dataclass(value):
        found = {field.name: getattr(value, field.name) for field in fields(value)}
    for kind in type(value).__mro__:
        made = kind.__dict__.get("__init__")
        if isinstance(made, types.FunctionType) and "__dataclass_fields__" not in kind.__dict__:
            for name in list(inspect.signature(made).parameters)[1:]:
                place = next((one for one in (name, f"_make_{name}", f"_{name}") if hasattr(value, one)), None)
                if place is not None:
                    found.setdefault(name, getattr(value, place))
    return found


def described(value: object, level: int = 0) -> str:
    """Return a setting as text: plain values and tensors by value, functions by name, other objects by settings.

    What a function with a name does inside is not seen, nor what a lambda has from outside of it.

    Example:
        >>> described(functools.partial(torch.optim.SGD, lr=1)), described((0.5, None, torch.float32))
        ('torch.optim.sgd.SGD(lr=1)', '(0.5, None, torch.float32)')
    """
    if level > _NESTED:
        return "..."
    deeper = functools.partial(described, level=level + 1)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a budget of 20.0 is one of 20
    if isinstance(value, torch.device) or (isinstance(value, str) and _NUMBERED.fullmatch(value)):
        value = str(value).partition(":")[0]  # which of them is each rank's own
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)} {_hex(_checksum(value, 0))}"
    if isinstance(value, Mapping):
        return "{" + _joined({deeper(key): deeper(item) for key, item in value.items()}) + "}"
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(map(deeper, value)) + ")"
    if isinstance(value, functools.partial):
        given = [*map(deeper, value.args), *(f"{name}={deeper(item)}" for name, item in value.keywords.items())]
        return f"{deeper(value.func)}({', '.join(given)})"
    if isinstance(value, types.MethodType):
        own = settings(value.__self__).items()  # of which others may be anything: a whole problem with its data
        return f"{_name(value)}({_joined({name: deeper(item) for name, item in own if isinstance(item, _PLAIN)})})"
    if isinstance(value, types.FunctionType):
        return _name(value) + (f" {_inside(value.__code__)}" if value.__name__ == "<lambda>" else "")
    if hasattr(value, "__qualname__"):
        return _name(value)
    held = {name: item for name, item in settings(value).items() if not isinstance(item, (Ranks, torch.Generator))}
    return f"{_name(type(value))}({_joined({name: deeper(item) for name, item in held.items()})})"


def samples(name: str, batch: Batch, ranks: Ranks = ALONE, floating: bool = True) -> dict[str, str]:
    """Return what is known of the samples of all ranks: of each field its type, shape and a checksum of its entries.

    The checksum is a sum over entries of their bits, each times an odd number of its place, modulo 2^64: one read, and
    shares add up. The inputs of a `Streamed` have none.

    Args:
        name: of the samples, before the names of the fields.
        batch: this rank's share.
        ranks: the processes that hold them.
        floating: whether fields of floating point have a checksum too.
    """
    start, total = ranks.place(len(batch))
    found = {}
    for field in fields(Batch):
        held = getattr(batch, field.name)
        if held is None:
            found[f"{name}.{field.name}"] = "None"
            continue
        read = not (field.name == "inputs" and isinstance(batch, Streamed))
        for place, values in named_tensors(f"{name}.{field.name}", held):
            found[place] = f"{values.dtype} {(total, *values.shape[1:])}"
            if read and (floating or not values.is_floating_point()):
                found[place] += f" {_hex(ranks.stack(_checksum(values, start).cpu()).sum(0))}"
    return found


def _checksum(values: Tensor, start: int) -> Tensor:
    """Return the checksum of `values` ``(n, ...)``, whose first row is row `start` of all."""
    rows = values.detach().reshape(len(values) if values.ndim else 1, -1).contiguous()
    device, width = rows.device, max(1, rows.shape[1])
    total = torch.zeros((), dtype=torch.int64, device=device)
    for number, piece in enumerate(rows.split(max(1, _PIECE // width))):
        bits = piece.view(_INTEGERS.get(piece.element_size(), torch.int64)).long()
        bits = bits ^ (bits >> 32)  # of a float64 the last digits are often zeros, and would stay so in every product
        first = start + number * max(1, _PIECE // width)
        columns = _odd(torch.arange(bits.shape[1], device=device))
        places = _odd(torch.arange(first, first + len(bits), device=device) + (1 << 40))
        total += ((bits * columns).sum(1) * places).sum()
    return total


def _odd(places: Tensor) -> Tensor:
    """Return an odd number of 64 bits for every place: SplitMix64 (Steele et al. 2014), with signed shifts."""
    mixed = places * -7046029254386353131
    mixed = (mixed ^ (mixed >> 30)) * -4658895280553007687
    return (mixed ^ (mixed >> 27)) | 1


def _hex(total: Tensor) -> str:
    return f"{int(total) % (1 << 64):016x}"


def _name(value: Any) -> str:
    """Return the qualified name, without the module of a script: a process that it starts calls that otherwise."""
    module = getattr(value, "__module__", None)
    return value.__qualname__ if module in (None, "__main__", "__mp_main__") else f"{module}.{value.__qualname__}"


def _inside(code: types.CodeType) -> str:
    """Return the names and the plain constants of a lambda."""
    plain = [one for one in code.co_consts if isinstance(one, (bool, int, float, str, tuple))]
    return f"{code.co_names} {plain}"


def _joined(pairs: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={text}" for name, text in pairs.items())
