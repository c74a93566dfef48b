"""A recorded step's update, pulled back for all parameters at once.

In pieces that stay in a CPU's second cache, so that what a pull-back computes on the way takes no room. And with a
gradient that is exact enough: at a cold start Adam's update moves by e eps / (|g| + eps)^2, so that where g is near eps
the rounding of g decides the answer. How far the answer moves with that rounding is looked at, and where it is more
than `TOLERANCE` the step's gradient is computed once more in float64 (`precise`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steelyard.bilevel.integrity import in_one_piece, pieces
from steelyard.bilevel.optimizers import Pullback, Pulled, pullback_of
from steelyard.bilevel.optimizers.sgd import SGDPullback
from steelyard.bilevel.precise import precise_gradient, single
from steelyard.bilevel.replay import gradient
from steelyard.bilevel.trajectory import Step, Tensors, Trajectory

__all__ = ["TOLERANCE", "Update", "pull_update"]

TOLERANCE = 1e-5
"""How far u may move, relative to its norm, where every entry of the gradient moves by its rounding error (entries of
which the gradient is exactly 0 left out of both)."""


_FAR = 1e3
"""How many times `TOLERANCE` the first-order bound may be before the noise itself need not be put in to know."""


class Update(NamedTuple):
    """Adjoints before an update, by parameter.

    Attributes:
        along: u, that of the gradient, but for the number `times`.
        direct: what reaches the parameters, but for the path through the gradient.
        state: that of the optimizer's state, by parameter and entry.
        times: what u is a multiple of `along` by; 1 but for a last step, from which all goes on in proportion to u.
        wide: the step in float64, where its derivatives along u should be taken there.
        noise: what rounding does, in float32, to an entry of the gradient.
        blur: about how far that may move a derivative along u.
        gradients: that the step used, where the update reads them.
    """

    along: Tensors
    direct: Tensors
    state: dict[str, Tensors]
    times: float = 1.0
    wide: Step | None = None
    noise: float = 0.0
    blur: float = 0.0
    gradients: Tensors | None = None


class _Known(NamedTuple):
    """What a pull-back of one parameter reads."""

    group: Mapping[str, Any]
    state: Mapping[str, Any]
    parameter: Tensor
    gradient: Tensor | None
    adjoint: Tensor
    state_adjoint: Mapping[str, Tensor]

    @classmethod
    def of(cls, step: Step, name: str, gradients: Tensors, adjoint: Tensors, state: dict[str, Tensors]) -> _Known:
        """Collect it for the parameter `name`."""
        return cls(
            step.groups[name],
            step.state[name],
            step.parameters[name],
            gradients.get(name),
            adjoint[name],
            state.get(name, {}),
        )

    def whole(self) -> bool:
        """Whether the parameter is one piece, or is not laid out so that it can be cut, in the gradient's precision."""
        tensors = [
            one for one in (*self[2:5], *self.state.values(), *self.state_adjoint.values()) if isinstance(one, Tensor)
        ]
        alike = all(one.dtype == self.adjoint.dtype for one in tensors)
        return alike and (in_one_piece(self.adjoint) or not all(one.is_contiguous() for one in tensors))

    def parts(self) -> Iterator[_Known]:
        """Yield flat pieces in the precision of the gradient."""
        dtype = self.adjoint.dtype if self.gradient is None else self.gradient.dtype

        def cut(value: Any) -> Any:
            return [one.to(dtype) for one in pieces(value)] if isinstance(value, Tensor) else value

        state, state_adjoint = (
            {k: cut(one) for k, one in values.items()} for values in (self.state, self.state_adjoint)
        )
        parameter, gradient, adjoint = cut(self.parameter), cut(self.gradient), cut(self.adjoint)
        for number in range(len(adjoint)):
            yield _Known(
                self.group,
                {key: one[number] if isinstance(one, list) else one for key, one in state.items()},
                parameter[number],
                None if gradient is None else gradient[number],
                adjoint[number],
                {key: one[number] for key, one in state_adjoint.items()},
            )


def pull_update(run: Trajectory, step: Step, adjoint: Tensors, state: dict[str, Tensors], last: bool = False) -> Update:
    """Pull the adjoints of parameters and state back through the update of `step`.

    Args:
        run, step: the step, whole.
        adjoint: of the parameters after it; where it is the `last`, it may be written over.
        state: of the optimizer's state after it.
        last: nothing before the step is asked for: of the answer only `along` counts.
    """
    pullback = pullback_of(run.optimizer)
    if pullback.linear:
        times = _multiple(pullback, step) if last and not any(state.values()) else None
        if times is not None:  # a pass over all parameters less
            return Update(adjoint, {}, {}, times)
        return _update(pullback, step, {}, adjoint, state, last)
    gradients = _gradient_of(run, step)
    if not single(step):
        return _update(pullback, step, gradients, adjoint, state, last)
    noise = {name: _noise(g) for name, g in gradients.items()}
    size, doubt = _Norm(), _Norm()
    found = _update(pullback, step, gradients, adjoint, state, last, noise, size, doubt)
    allowed, bound = TOLERANCE * size.value(), doubt.value()
    entry = _noise_of_all(gradients)
    found = found._replace(noise=entry, blur=entry * size.value(), gradients=gradients)
    # The bound is 6 to 100 times too large in what was measured: between, the noise itself is put in.
    doubtful = not bound <= allowed and (
        allowed * _FAR < bound < float("inf") or _moved(pullback, step, gradients, adjoint, state, noise) > allowed
    )
    if not any(run.ranks.lengths(int(doubtful))):
        return found
    exact = precise_gradient(run, step, gradients)
    if exact is None:
        return found
    size = _Norm()
    found = _update(pullback, step, exact.gradients, adjoint, state, last, size=size, over=found.along)
    return found._replace(wide=exact.wide, noise=entry, blur=entry * size.value(), gradients=gradients)


def _multiple(pullback: Pullback, step: Step) -> float | None:
    """Return the one number that u is of the adjoint in all parameters; None where there is no such."""
    if step.skipped or not isinstance(pullback, SGDPullback):
        return None
    factors = {pullback.factor(step.groups[name], step.state[name]) for name in step.parameters}
    return factors.pop() if len(factors) == 1 else None


class _Norm:
    """The norm of many tensors, from the norm of each, which is not waited for; infinite where one is not known."""

    def __init__(self) -> None:
        self.terms: list[Tensor] = []
        self.known = True

    def add(self, term: Tensor | None) -> None:
        if term is None:
            self.known = False
        else:
            self.terms.append(term)

    def value(self) -> float:
        if not self.known:
            return float("inf")
        return float(torch.linalg.vector_norm(torch.stack(self.terms).double())) if self.terms else 0.0


def _update(
    pullback: Pullback,
    step: Step,
    gradients: Tensors,
    adjoint: Tensors,
    state: dict[str, Tensors],
    last: bool,
    noise: Mapping[str, Tensor] | None = None,
    size: _Norm | None = None,
    doubt: _Norm | None = None,
    over: Tensors | None = None,
) -> Update:
    """Pull back; note the norm of `along` where the gradient is not 0, and how far it moves by `noise`.

    (Where a unit is dead the gradient is exactly 0, and u as large as it can be, along which no sample's loss moves.)

    `over`: tensors that may be written over.
    """
    update = Update({}, {}, {})
    for name, parameter in step.parameters.items():
        before = state.get(name, {})
        if name in step.skipped:
            along, direct = torch.zeros_like(parameter), adjoint[name]
        else:
            known = _Known.of(step, name, gradients, adjoint, state)
            found = _whole(pullback, known, last, size, (over or {}).get(name))
            along, direct, before = found.gradient, found.parameter, found.state
            if noise is not None and doubt is not None:
                doubt.add(None if found.doubt is None else found.doubt * noise[name])
        update.along[name], update.direct[name], update.state[name] = along, direct, before
    return update


def _whole(pullback: Pullback, known: _Known, last: bool, size: _Norm | None, over: Tensor | None) -> Pulled:
    """Pull one parameter back; where that leaves something on the way, by pieces in the precision of its gradient.

    `over` may be written over.
    """
    if pullback.linear or known.whole():
        return _pulled(pullback, known, last, size)
    adjoint = known.adjoint
    along = _Joined(None, adjoint, over)
    direct, doubts = _Joined(adjoint, adjoint), []
    before: dict[str, _Joined] = {}
    for number, part in enumerate(known.parts()):
        found = _pulled(pullback, part, last, size)
        along.put(number, found.gradient, None)
        doubts.append(found.doubt)
        if last:
            continue
        direct.put(number, found.parameter, part.adjoint)
        for key, value in found.state.items():
            joined = before.setdefault(key, _Joined(known.state_adjoint.get(key), adjoint))
            joined.put(number, value, part.state_adjoint.get(key))
    known_doubts = [one for one in doubts if one is not None]
    doubt = torch.linalg.vector_norm(torch.stack(known_doubts)) if len(known_doubts) == len(doubts) else None
    return Pulled(along.whole(), direct.whole(), {key: one.whole() for key, one in before.items()}, doubt)


def _pulled(pullback: Pullback, part: _Known, last: bool, size: _Norm | None) -> Pulled:
    """Pull one piece back; with a `size`, note the norm of its `gradient` there, and how it bends."""
    found = pullback.pull(*part, last=last, bent=size is not None)
    if size is not None and part.gradient is not None:
        size.add(torch.linalg.vector_norm(part.gradient.sign().mul_(found.gradient)))
    return found


class _Joined:
    """A tensor put together of flat pieces; where they are the pieces of what was `given`, that itself."""

    def __init__(self, given: Tensor | None, like: Tensor, over: Tensor | None = None) -> None:
        self._value, self._like = given, like
        self._places: tuple[Tensor, ...] = ()
        if over is not None and over.is_contiguous():
            self._value, self._places = over, pieces(over)

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


def _noise(gradient: Tensor) -> Tensor:
    """Return what rounding does to an entry of a gradient, as a scalar: twice its precision times its size."""
    size = torch.linalg.vector_norm(gradient) / max(1, gradient.numel()) ** 0.5
    return 2 * torch.finfo(gradient.dtype).eps * size


def _noise_of_all(gradients: Tensors) -> float:
    """Return what rounding does to an entry of the whole gradient: one that is nothing else is as large as that."""
    count = sum(g.numel() for g in gradients.values())
    size = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients.values()])))
    return 2 * torch.finfo(torch.float32).eps * size / max(1, count) ** 0.5


def _moved(
    pullback: Pullback,
    step: Step,
    gradients: Tensors,
    adjoint: Tensors,
    state: dict[str, Tensors],
    noise: Mapping[str, Tensor],
) -> float:
    """Return the norm of the difference that the noise makes to u, by pulling back with it and without."""
    total = _Norm()
    for name in gradients:
        known = _Known.of(step, name, gradients, adjoint, state)
        for part in known.parts():
            here = part.gradient
            assert here is not None
            there = here + here.sign() * noise[name]
            moved = pullback.pull(*part._replace(gradient=there), last=True).gradient
            total.add(torch.linalg.vector_norm(moved - pullback.pull(*part, last=True).gradient))
    return total.value()


def _gradient_of(run: Trajectory, step: Step) -> Tensors:
    """The gradient that the step used: by reference where the run still holds it, else by one reverse pass."""
    held = step.held_gradient()
    # All ranks or none: one alone would wait for the others' share.
    lost = any(run.ranks.lengths(int(held is None)))
    found = run.ranks.mean(gradient(run, step, step.parameters)) if lost or held is None else held
    return {name: g for name, g in found.items() if name not in step.skipped}
