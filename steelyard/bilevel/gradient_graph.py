"""The graph of a recorded step's gradient, kept so that its derivatives need no pass over the step again.

A recorder that is asked for graphs puts copies of the parameters into the module for the forward pass, which no step
writes to, and takes the gradient by these with a graph of its own when `backward` comes to the loss. What the training
sees is the same loss and the same gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, once_differentiable

from steelyard.bilevel.integrity import changed
from steelyard.bilevel.sweep.graph_record import nodes_of

__all__ = ["GradientGraph", "graphed"]


@dataclass
class GradientGraph:
    """A step's gradient as a function of its parameters and of each sample's loss.

    Attributes:
        copies: the parameters that the forward pass read, by name.
        extra: zeros ``(batch,)``: ``sum extra_i l_i`` was added to the loss, so a derivative by it is one along l_i.
        gradients: by name, with their graph; of a parameter that the loss does not read None. Empty before `backward`,
            and where they have no graph.
        used: the optimizer's gradient was these, bit for bit.
        custom: there is a `torch.autograd.Function` in it, whose backward pass may read or draw anything.
    """

    copies: dict[str, Tensor]
    extra: Tensor
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    used: bool = False
    custom: bool = False

    def note_used(self, gradient: Mapping[str, Tensor]) -> None:
        """Note whether the optimizer is given these gradients: the same memory, which nobody has written to."""
        own = {name: g for name, g in self.gradients.items() if g is not None}
        same = own.keys() == gradient.keys() and not any(g._version for g in own.values())
        self.used = same and all(g.data_ptr() == gradient[name].data_ptr() for name, g in own.items())

    @property
    def whole(self) -> bool:
        """Whether the gradients have the values that they were computed with."""
        return not any(g is not None and g._version for g in self.gradients.values())

    def parameters(self, live: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Return the copies, without their graph; None where they are not what is `live`, as `known` copies are."""
        if self.copies.keys() != live.keys() or not self.gradients:
            return None
        same = known.keys() == live.keys() and all(
            one.data_ptr() == known[name].data_ptr() for name, one in self.copies.items()
        )
        if not same and changed(self.copies, live):
            return None
        return {name: one.detach() for name, one in self.copies.items()}

    def slope(self) -> dict[str, Tensor]:
        """Return the gradient, without its graph; zeros where the loss reads no parameter."""
        found = self.gradients
        return {n: torch.zeros_like(one) if (g := found[n]) is None else g.detach() for n, one in self.copies.items()}

    def is_slope(self, other: Mapping[str, Tensor]) -> bool:
        """Whether `other` is the memory of these gradients."""
        own = {name: g for name, g in self.gradients.items() if g is not None}
        return self.whole and all(name in other and g.data_ptr() == other[name].data_ptr() for name, g in own.items())

    def along(self, direction: Mapping[str, Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the derivatives of <direction, gradient> by `inputs`, of which the copies and `extra` can be some.

        The graph stays, and can be asked again.
        """
        moving = [(g, direction[n]) for n, g in self.gradients.items() if g is not None and g.requires_grad]
        if not moving:
            return tuple(torch.zeros_like(one).detach() for one in inputs)
        return torch.autograd.grad(
            [g for g, _ in moving],
            list(inputs),
            [u for _, u in moving],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )


def graphed(
    module: nn.Module,
    live: Mapping[str, Tensor],
    samples: int,
    losses_of: Callable[[], Tensor],
    reduce: Callable[[Tensor], Tensor],
    swapped: Callable[[nn.Module, Mapping[str, Tensor]], Any],
    copied: Mapping[str, Tensor],
) -> tuple[Tensor, GradientGraph | None]:
    """Return the inner loss, and the graph of its gradient that a `backward` will leave; None where none can be kept.

    Args:
        module: what `losses_of` evaluates.
        live: the optimised parameters, by name.
        samples: how many losses there are.
        losses_of: returns the losses ``(batch,)`` of the module as it is when it is called.
        reduce: makes one number of them.
        swapped: puts tensors in the places of parameters.
        copied: copies of the parameters that nobody writes to; empty where there are none.
    """
    with torch.enable_grad():
        values = [copied[name] if copied else p.detach().clone() for name, p in live.items()]
        copies = dict(zip(live, _Standing.apply(*live.values(), *values), strict=True))
    with swapped(module, copies):
        losses = losses_of()
        value = reduce(losses)
    if not value.requires_grad or losses.shape != (samples,):
        return value, None
    nodes = list(nodes_of(value, {one.grad_fn for one in copies.values()}))
    others = _others(nodes, live)
    if others is None:
        return value, None
    extra = torch.zeros_like(losses, requires_grad=True)
    graph = GradientGraph(copies, extra, custom=any(isinstance(one, BackwardCFunction) for one in nodes))
    whole = value + (extra * losses).sum()

    def differentiate() -> list[Tensor | None]:
        """Return the gradient by the copies and by the others, when `backward` comes for the first time."""
        asked = [*copies.values(), *others]
        with torch.enable_grad(), swapped(module, copies):  # a checkpoint reads the parameters again
            try:
                found = torch.autograd.grad(whole, asked, create_graph=True, allow_unused=True)
            except RuntimeError:  # a backward pass that has no derivative (CrossMapLRN2d's): the step has no graph
                found = torch.autograd.grad(whole, asked, allow_unused=True)
            else:
                graph.gradients.update(zip(copies, found, strict=False))
        return [None if one is None else one.detach() for one in found]

    delivered: Tensor = _Deliver.apply(value.detach(), _Once(differentiate), *live.values(), *others)
    return delivered, graph


class _Once:
    """The value of a function, computed when it is first asked for; what the function holds is let go then."""

    def __init__(self, function: Callable[[], list[Tensor | None]]) -> None:
        self._function: Callable[[], list[Tensor | None]] | None = function
        self._value: list[Tensor | None] = []

    def __call__(self) -> list[Tensor | None]:
        if self._function is not None:
            self._value, self._function = self._function(), None
        return [None if one is None else one.detach() for one in self._value]


class _Deliver(torch.autograd.Function):
    """A loss whose gradient is computed elsewhere, and handed to the live parameters."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: _Once, *live: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        found = ctx.gradients()
        if cotangent.device.type != "cpu" or float(cotangent) != 1.0:
            found = [None if one is None else one * cotangent.to(one.dtype) for one in found]
        return None, None, *found


class _Standing(torch.autograd.Function):
    """Of parameters and their copies: the copies, as functions of the parameters (`Tensor.clone` of what is there)."""

    @staticmethod
    def forward(ctx: Any, *live_and_copies: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple([one.detach() for one in live_and_copies[len(live_and_copies) // 2 :]])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        return *cotangents, *[None] * len(cotangents)


def _others(nodes: Sequence[Any], live: Mapping[str, Tensor]) -> list[Tensor] | None:
    """Return what beside the copies a loss has a gradient by; None where its graph reads parameters past them.

    `nodes` are those of its graph, on this side of the copies.
    """
    own, found = {id(p) for p in live.values()}, list[Tensor]()
    for node in nodes:
        kind = type(node).__name__
        if kind == "CheckpointFunctionBackward":  # differentiates by `backward` alone
            return None
        if kind == "AccumulateGrad":
            if id(node.variable) in own:  # read past the module
                return None
            found.append(node.variable)
    return found
