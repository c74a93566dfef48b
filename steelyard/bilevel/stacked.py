"""Several modules of one architecture as one: their parameters stacked, each evaluated with its own on its own rows.

A net of a few thousand parameters costs what its operators are called for, not what they multiply. M of them in one
pass cost little more than one, and as no row of one meets a parameter of another, the gradient of the sum of their
losses has, member by member, each one's own gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import vmap

from steelyard._support._nested import mapped
from steelyard.bilevel.trajectory import swapped

__all__ = ["Stacked", "stacked_optimizer"]

Layer: TypeAlias = Callable[[Tensor], Tensor]

_ELEMENTWISE = (
    *(nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Softsign),
    *(nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Hardtanh, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.Identity),
)


class Stacked(nn.Module):
    """M modules in one: ``(M * b, ...)`` rows, those of one member after those of another, give outputs in that order.

    The operators are called once for all members: by `torch.func.vmap`, and for chains of linear layers and elementwise
    functions by one product of M matrices a layer.

    Args:
        members: of one architecture, none of which shares a tensor with another. The first says what a forward pass
            does; of all the parameters and buffers are copied.

    Raises:
        ValueError: they have other parameters or buffers, by name, shape, type or whether they are trained; or two of
            them share one.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        tensors = [_tensors(one) for one in members]
        for other in tensors[1:]:
            _check_alike(tensors[0], other)
        if len({id(t) for one in tensors for t in one.values()}) < sum(map(len, tensors)):
            raise ValueError("two members share a tensor")
        self.count = len(members)
        self._first = (members[0],)  # in a tuple: its parameters are not to be trained
        self._stacked: dict[str, Tensor] = {}
        for number, (name, value) in enumerate(tensors[0].items()):
            together = torch.stack([one[name].detach() for one in tensors])
            if isinstance(value, nn.Parameter):
                together = nn.Parameter(together, value.requires_grad)
                self.register_parameter(f"parameter_{number}", together)
            else:
                self.register_buffer(f"buffer_{number}", together)
            self._stacked[name] = together
        self._chain = _chain(members[0], self._stacked)

    @property
    def stacks(self) -> Mapping[str, Tensor]:
        """The parameters and buffers ``(M, ...)``, by the name that they have in a member."""
        return self._stacked

    @property
    def chained(self) -> bool:
        """Whether a pass is by one product of matrices a layer."""
        return self._chain is not None

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return the outputs of all rows; inputs and outputs may be nested in tuples and dicts.

        Raises:
            RuntimeError: the module does something that `torch.func.vmap` cannot: random numbers, data-dependent
                control flow, a buffer that is written to.
        """
        inputs, named = mapped(self._apart, inputs), mapped(self._apart, named)
        if self._chain is None:
            return mapped(_joined, vmap(self._one)(self._stacked, inputs, named))
        (rows,) = inputs
        for layer in self._chain:
            rows = layer(rows)
        return _joined(rows)

    def _one(self, tensors: Mapping[str, Tensor], inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        with swapped(self._first[0], tensors):
            return self._first[0](*inputs, **named)

    def _apart(self, rows: Tensor) -> Tensor:
        return rows.unflatten(0, (self.count, -1))

    def put_back(self, members: Sequence[nn.Module]) -> None:
        """Copy each one's parameters into `members`; what is as it was is not written to: a record would notice."""
        with torch.no_grad():
            for number, one in enumerate(members):
                for name, value in one.named_parameters():
                    if not torch.equal(value, self._stacked[name][number]):
                        value.copy_(self._stacked[name][number])


def stacked_optimizer(optimizer: torch.optim.Optimizer, member: nn.Module, stacked: Stacked) -> torch.optim.Optimizer:
    """Return an optimizer of the stacks with the groups and the state that `optimizer` of a `member` starts with.

    Args:
        optimizer: of one of torch's classes whose update is elementwise, before its first step.
        member: whose parameters it has.
        stacked: the module with all members' parameters.
    """
    places: dict[Tensor, Tensor] = {p: stacked.stacks[name] for name, p in member.named_parameters()}
    groups = [{**group, "params": [places[p] for p in group["params"]]} for group in optimizer.param_groups]
    made: torch.optim.Optimizer = type(optimizer)(groups, lr=groups[0]["lr"])  # type: ignore[call-arg]
    for p, state in optimizer.state.items():
        made.state[places[p]] = {key: _copies(key, value, p, stacked.count) for key, value in state.items()}
    return made


def _copies(key: str, value: Any, p: Tensor, count: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    # (Of a parameter that is one number the step count has the shape, too; it is the same for all members.)
    return value.expand(count, *value.shape).clone() if value.shape == p.shape and key != "step" else value.clone()


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _check_alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    if list(one) != list(other):
        raise ValueError(f"members have other tensors: {sorted(set(one) ^ set(other)) or list(one)}")
    for name, value in one.items():
        facts = [(t.shape, t.dtype, t.device, t.requires_grad, type(t)) for t in (value, other[name])]
        if facts[0] != facts[1]:
            raise ValueError(f"{name!r} is {facts[0][:4]} in one member and {facts[1][:4]} in another")


def _joined(rows: Tensor) -> Tensor:
    return rows.flatten(0, 1)


def _chain(module: nn.Module, stacks: Mapping[str, Tensor]) -> list[Layer] | None:
    """Return the layers of a chain of linear ones and elementwise functions, for rows ``(M, b, ...)``; else None."""
    found = [_layer(prefix, one, stacks) for prefix, one in _in_a_row("", module)]
    return None if any(one is None for one in found) else [one for one in found if one is not None]


def _in_a_row(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield what a `Sequential` calls, one after the other, and how its tensors are called."""
    if type(module) is not nn.Sequential:
        yield prefix, module
        return
    for name, one in module._modules.items():
        if one is not None:
            yield from _in_a_row(f"{prefix}{name}.", one)


def _layer(prefix: str, layer: nn.Module, stacks: Mapping[str, Tensor]) -> Layer | None:
    if "forward" in vars(layer):
        return None
    if type(layer) in _ELEMENTWISE:
        return layer
    if type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1):
        return _flattened
    names = [f"{prefix}{name}" for name, p in layer._parameters.items() if p is not None]
    if type(layer) is nn.Linear and all(name in stacks for name in names):  # (one that stands twice has one name)
        return _Linear(*(stacks[name] for name in names))
    return None


def _flattened(rows: Tensor) -> Tensor:
    return rows.flatten(2)


class _Linear:
    """Linear layers ``(M, out, in)`` and ``(M, out)`` of rows ``(M, b, ..., in)``."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, rows: Tensor) -> Tensor:
        columns = rows.flatten(1, -2).mT
        # Weight times rows, and not rows times weight: so the gradient comes in the layout of the weight.
        if self._bias is None:
            found = torch.bmm(self._weight, columns).mT
        else:
            found = torch.baddbmm(self._bias[:, :, None], self._weight, columns).mT
        return found.unflatten(1, rows.shape[1:-1]) if rows.ndim > 3 else found
