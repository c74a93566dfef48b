"""One parameter's update pulled back piece by piece, so that what is computed on the way stays in a CPU's cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor

from steelyard.bilevel.integrity import in_one_piece, pieces
from steelyard.bilevel.optimizers._base import ParameterUpdate, Pullback, Pulled
from steelyard.bilevel.optimizers.elementwise import ElementwisePullback

__all__ = ["Watch", "pieces_of", "pull_in_pieces"]

Watch: TypeAlias = Callable[[ParameterUpdate, Pulled], None]
"""Called with every piece and its answer while both are in the cache."""


def pull_in_pieces(
    pullback: Pullback, update: ParameterUpdate, watch: Watch | None = None, into: Tensor | None = None
) -> Pulled:
    """Pull one parameter's update back, in the precision of its gradient where it is cut.

    Args:
        pullback, update: of which optimizer, and what.
        watch: sees every piece. (`Pulled.sensitivity` is for it alone: the answer for the whole has none.)
        into: where the adjoint of the gradient may be written.
    """
    if pullback.linear or isinstance(pullback, ElementwisePullback) or _whole(update):
        return _pull(pullback, update, watch)
    adjoint = update.adjoint
    gradient, direct = _Joined(None, adjoint, into), _Joined(adjoint, adjoint)
    state: dict[str, _Joined] = {}
    for number, piece in enumerate(pieces_of(update)):
        found = _pull(pullback, piece, watch)
        gradient.put(number, found.gradient, None)
        if update.last:
            continue
        direct.put(number, found.parameter, piece.adjoint)
        for key, value in found.state.items():
            joined = state.setdefault(key, _Joined(update.state_adjoint.get(key), adjoint))
            joined.put(number, value, piece.state_adjoint.get(key))
    return Pulled(gradient.whole(), direct.whole(), {key: one.whole() for key, one in state.items()})


def pieces_of(update: ParameterUpdate) -> Iterator[ParameterUpdate]:
    """Yield flat pieces of an update in the precision of its gradient."""
    dtype = update.adjoint.dtype if update.gradient is None else update.gradient.dtype

    def cut(value: Any) -> Any:
        return [one.to(dtype) for one in pieces(value)] if isinstance(value, Tensor) else value

    state, state_adjoint = (
        {key: cut(one) for key, one in values.items()} for values in (update.state, update.state_adjoint)
    )
    parameter, gradient, adjoint = cut(update.parameter), cut(update.gradient), cut(update.adjoint)
    for number in range(len(adjoint)):
        yield update._replace(
            state={key: one[number] if isinstance(one, list) else one for key, one in state.items()},
            parameter=parameter[number],
            gradient=None if gradient is None else gradient[number],
            adjoint=adjoint[number],
            state_adjoint={key: one[number] for key, one in state_adjoint.items()},
        )


def _pull(pullback: Pullback, update: ParameterUpdate, watch: Watch | None) -> Pulled:
    found = pullback.pull(update)
    if watch is not None:
        watch(update, found)
    return found


def _whole(update: ParameterUpdate) -> bool:
    """Whether the parameter is one piece, or is not laid out so that it can be cut, in the gradient's precision."""
    values = (update.parameter, update.gradient, update.adjoint, *update.state.values(), *update.state_adjoint.values())
    tensors = [one for one in values if isinstance(one, Tensor)]
    alike = all(one.dtype == update.adjoint.dtype for one in tensors)
    return alike and (in_one_piece(update.adjoint) or not all(one.is_contiguous() for one in tensors))


class _Joined:
    """A tensor put together of flat pieces; where they are the pieces of what was `given`, that itself."""

    def __init__(self, given: Tensor | None, like: Tensor, into: Tensor | None = None) -> None:
        self._value, self._like = given, like
        self._places: tuple[Tensor, ...] = ()
        if into is not None and into.is_contiguous():
            self._value, self._places = into, pieces(into)

    def put(self, number: int, piece: Tensor, given: Tensor | None) -> None:
        """Write the piece to its place."""
        if piece is given:
            return
        if not self._places:
            self._value = torch.empty_like(self._like, memory_format=torch.contiguous_format)
            self._places = pieces(self._value)
        self._places[number].copy_(piece)

    def whole(self) -> Tensor:
        """Return the tensor."""
        assert self._value is not None
        return self._value
