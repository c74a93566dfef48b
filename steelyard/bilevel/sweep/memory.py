"""How many bytes of activations a sample costs, from a probe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

__all__ = ["bytes_per_sample"]


class _Bytes(TorchDispatchMode):
    """Notes the most bytes that one operator touches (inputs and outputs), and those of all outputs together."""

    def __init__(self) -> None:
        super().__init__()
        self.widest = self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.widest = max(self.widest, _bytes((args, kwargs, result)))
        if not func.is_view and not func._schema.is_mutable:
            self.total += _bytes(result)
        return result


def _bytes(values: Any) -> int:
    return sum(one.numel() * one.element_size() for one in tree_iter(values) if isinstance(one, Tensor))


def bytes_per_sample(probe: Callable[[int], Callable[[], Tensor]], kept: bool = False) -> int:
    """Return how the widest operator's bytes, or where all is `kept` those of all, grow with a sample, at least 1.

    Args:
        kept: whether activations stay until the end.
        probe: for a number of samples, what evaluates so many of them. From four and two of them the parameters' share
            cancels, whatever the layout of the activations.
    """
    found = []
    for samples in (4, 2):
        with torch.no_grad(), _Bytes() as mode:
            probe(samples)()
        found.append(mode.widest + mode.total if kept else mode.widest)
    return max(1, (found[0] - found[1]) // 2)
