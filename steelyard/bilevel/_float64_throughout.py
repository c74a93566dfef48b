"""A replay in float64 of what holds float32 of its own: class weights in a loss, a matrix in an attribute, `x.float()`.

Inside of the mode float32 that meets float64 is widened, a cast down to float32 keeps float64, and noise is drawn as
float32 draws it, so that a replay has the noise of the training. It is taken where a plain replay fails, or comes out
as another gradient: an operator more of Python for each of torch's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

__all__ = ["Float64Throughout"]

_DRAWS = frozenset(
    {
        *("randn_like", "rand_like", "bernoulli", "normal", "poisson", "exponential"),
        *("normal_", "uniform_", "bernoulli_", "exponential_", "log_normal_", "cauchy_", "geometric_"),
    }
)
"""Operators whose tensors say a shape or a rate: how many numbers they draw, and which, hangs on the precision."""


class Float64Throughout(TorchDispatchMode):
    """Inside, all that is reached from float64 is taken in float64.

    Args:
        every: casts to half precision and bfloat16 are left out as well.
    """

    def __init__(self, every: bool = False) -> None:
        super().__init__()
        self._narrow = frozenset({torch.float32, torch.float16, torch.bfloat16} if every else {torch.float32})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        dtypes = {one.dtype for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)}
        if torch.float64 not in dtypes or not isinstance(func, torch._ops.OpOverload):
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if name in _DRAWS:
            return _drawn(func, name, args, kwargs)
        way_back = torch._C._current_graph_task_id() >= 0  # where a cast is that of a gradient to its leaf's precision
        if name == "_to_copy" and kwargs.get("dtype") in self._narrow and not way_back:
            kwargs = {**kwargs, "dtype": torch.float64}
        if not self._narrow.isdisjoint(dtypes) and not func._schema.is_mutable:
            args, kwargs = tree_map(self._widened, (args, kwargs))
        return func(*args, **kwargs)

    def _widened(self, value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.dtype in self._narrow else value


def _drawn(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Return what float32 draws, widened; in place where the operator is."""
    narrow, options = tree_map(_narrowed, (args, kwargs))
    if not name.endswith("_"):
        return func(*narrow, **options).double()
    args[0].copy_(func(*narrow, **options))
    return args[0]


def _narrowed(value: Any) -> Any:
    if value is torch.float64:
        return torch.float32
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float64 else value
