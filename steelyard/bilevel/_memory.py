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
    """Notes the most bytes of sample-shaped tensors that one operator touches (its inputs and outputs)."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.samples = samples
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        touched = sum(
            one.numel() * one.element_size()
            for one in tree_iter((args, kwargs, result))
            if isinstance(one, Tensor) and one.ndim > 0 and one.shape[0] == self.samples
        )
        self.bytes = max(self.bytes, touched)
        return result


def bytes_per_sample(run: Callable[[], Tensor], samples: int) -> int:
    """Return the widest operator's bytes a sample when `run` evaluates `samples` samples without a graph."""
    with torch.no_grad(), _Widest(samples) as widest:
        run()
    return widest.bytes // samples
