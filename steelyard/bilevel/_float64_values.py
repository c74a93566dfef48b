"""A forward pass in float32 whose values are those of float64, each rounded once.

Inside of the mode every operator that reads float32 is taken in float64, of values that were never rounded; what the
model, the loss and autograd see is its rounded output. So a backward pass afterwards is one in float32, with float32's
kernels, over values that are right to 6e-8: no ReLU is on that should be off, no statistic of a batch is rough. Nothing
has to be cast by who wrote the model or the loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from steelyard.bilevel._float64_convolution import Float64Convolutions

__all__ = ["Float64Values"]

_LISTS = (list, tuple)
_ASKS_FOR_STRIDES = frozenset(
    {
        torch.ops.aten.as_strided.default,
        torch.ops.aten._reshape_alias.default,
        torch.ops.aten.as_strided_scatter.default,
    }
)


class _Wide(NamedTuple):
    """A tensor's values in float64, and the version of the tensor that they are those of."""

    values: Tensor
    version: int


class Float64Values(TorchDispatchMode):
    """Inside, outputs in float32 are rounded from float64.

    An operator stays as it is where it draws random numbers (in another precision it might draw others), where it
    reads float64 or complex numbers that are the caller's own, where it has no float64, or gives a tensor another shape
    in place (whose values are rounded once more).

    Args:
        tangents: tensors that move beside the values, in a forward-mode pass. Where they are given, what reads one of
            them stays in float32, and so does what is taken on the way back.
    """

    def __init__(self, tangents: Iterable[Tensor] | None = None) -> None:
        super().__init__()
        self._wide = WeakIdKeyDictionary()
        self._around = ExitStack()
        self._beside = None if tangents is None else WeakIdKeyDictionary()
        self._mark(tangents or ())

    def __enter__(self) -> Float64Values:
        self._around.enter_context(Float64Convolutions())
        super().__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        super().__exit__(*failure)
        self._around.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._beside is not None:
            if torch._C._current_graph_task_id() >= 0:  # inside of a backward pass
                return func(*args, **kwargs)
            if any(one in self._beside for one in _tensors([*args, *kwargs.values()])):
                given = func(*args, **kwargs)
                self._mark(_tensors([given]))
                return given
        kind = _kind(func)
        tensors = list(_tensors(args)) if kind else []
        if kind == "laid out":
            self._wide.pop(args[0], None)
        if (
            kind == "laid out"
            or not _in_float32(tensors, types)
            or any(isinstance(one, Tensor) for one in kwargs.values())
        ):
            return func(*args, **kwargs)
        wide = {id(one): self._of(one) for one in tensors if one.dtype == torch.float32}
        if func in _ASKS_FOR_STRIDES and any(_laid_out(one) != _laid_out(wide.get(id(one), one)) for one in tensors):
            return func(*args, **kwargs)
        wider = {**kwargs, "dtype": torch.float64} if kwargs.get("dtype") == torch.float32 else kwargs
        try:
            found = func(*_replaced(args, wide), **wider)
        except (RuntimeError, TypeError):  # it has no float64
            return func(*args, **kwargs)
        if kind == "written":
            target: Tensor = args[0]
            target.copy_(found)
            self._note(target, found, writes=1)  # counted when it is returned
            return target
        if kind == "view":
            given = func(*args, **kwargs)
            for one, values in zip(_tensors([given]), _tensors([found]), strict=True):
                self._note(one, values)
            return given
        if kind == "batch norm":  # writes to its running statistics, of which not every schema says so
            for one in _tensors(args[3:5]):
                one.copy_(wide[id(one)])
        return found if kwargs.get("dtype") == torch.float64 else self._rounded(found)

    def _mark(self, tangents: Iterable[Tensor]) -> None:
        for one in tangents:
            assert self._beside is not None
            self._beside[one] = True

    def _of(self, tensor: Tensor) -> Tensor:
        known = self._wide.get(tensor)
        if known is not None and known.version == tensor._version:
            values: Tensor = known.values
            return values
        return tensor.detach().double()

    def _note(self, tensor: Tensor, values: Tensor, writes: int = 0) -> None:
        if values.dtype == torch.float64 and tensor.dtype == torch.float32 and not tensor.is_inference():
            self._wide[tensor] = _Wide(values, tensor._version + writes)

    def _rounded(self, found: Any) -> Any:
        if isinstance(found, _LISTS):
            return type(found)([self._rounded(one) for one in found])
        if isinstance(found, Tensor) and found.dtype == torch.complex128:
            return found.to(torch.complex64)
        if not isinstance(found, Tensor) or found.dtype != torch.float64:
            return found
        rounded = found.to(torch.float32)
        self._note(rounded, found)
        return rounded


@lru_cache(maxsize=4096)
def _kind(func: Any) -> str:
    """Return what an operator does; empty: it is left as it is."""
    if not isinstance(func, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded in func.tags:
        return ""
    if torch.Tag.inplace_view in func.tags:
        return "laid out"
    schema = func._schema
    if "batch_norm" in func.name() and "backward" not in func.name():
        return "batch norm"
    written = [number for number, one in enumerate(schema.arguments) if one.alias_info and one.alias_info.is_write]
    if written:
        return "written" if written == [0] and str(schema.arguments[0].type) == "Tensor" else ""
    return "view" if any(one.alias_info for one in schema.returns) else "new"


def _in_float32(tensors: Iterable[Tensor], types: Iterable[Any]) -> bool:
    """Whether there is float32 among them, and nothing more exact, and nothing but plain tensors."""
    if any(kind is not Tensor and kind is not nn.Parameter for kind in types):
        return False
    tensors = list(tensors)
    if any(one.dtype == torch.float64 or one.is_complex() or one.layout != torch.strided for one in tensors):
        return False
    return any(one.dtype == torch.float32 for one in tensors)


def _laid_out(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.stride(), tensor.storage_offset()


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among values, and in lists among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, _LISTS):
            yield from _tensors(value)


def _replaced(values: Any, wide: Mapping[int, Tensor]) -> Any:
    """Return the values, tensors replaced by their values in float64, as far as there are any."""
    found = []
    for value in values:
        one = _replaced(value, wide) if isinstance(value, _LISTS) else value
        found.append(wide.get(id(one), one) if isinstance(one, Tensor) else one)
    return type(values)(found)
