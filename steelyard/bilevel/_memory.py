"""How many bytes of activations a sample costs, from a probe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

__all__ = ["bytes_per_sample"]


class _Widest(TorchDispatchMode):
    """Notes the most bytes that one operator touches (its inputs and outputs)."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = (one for one in tree_iter((args, kwargs, result)) if isinstance(one, Tensor))
        self.bytes = max(self.bytes, sum(one.numel() * one.element_size() for one in tensors))
        return result


def bytes_per_sample(probe: Callable[[int], Callable[[], Tensor]]) -> int:
    """Return how the widest operator's bytes grow with a sample, at least 1.

    Args:
        probe: for a number of samples, what evaluates so many of them. From four and two of them the parameters' share
            cancels, whatever the layout of the activations.
    """
    widest = []
    for samples in (4, 2):
        with torch.no_grad(), _Widest() as mode:
            probe(samples)()
        widest.append(mode.bytes)
    return max(1, (widest[0] - widest[1]) // 2)
