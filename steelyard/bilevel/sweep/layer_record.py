"""The layers of a plain network, read off autograd's graph: its row products without a look at every operator.

Where the graph of the losses is one chain of affine layers, functions of single entries and a loss of each row, row i
of every tensor on the way reaches loss i alone. Then t_i = sum over the layers of <g_i, x_i U' + b>, with x_i the rows
that entered a layer, g_i what `backward` sent to its output, U and b the directions of its weight and bias: as
`from_record.row_products` has it, but the forward pass runs without a dispatch mode around it. Which graphs are such
chains is found out on a first forward pass, and looked at in each graph again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from steelyard._support._finite import all_finite
from steelyard.bilevel.sweep.graph_record import ForwardRecord, Held, Recording, Unusable, held_gradient

__all__ = ["LayerRecord", "kept_forward", "layers_of", "per_sample"]


@dataclass
class Layer:
    """One affine layer.

    Attributes:
        weight, bias: names of its parameters; None for what is not optimised.
        transposed: the layer multiplies by the weight's transpose, as `torch.nn.Linear` does.
        inputs: the rows ``(samples, width)`` that entered, where its weight is optimised.
        gradient: what `backward` sent to its output.
    """

    weight: str | None
    bias: str | None
    transposed: bool
    inputs: Held | None
    gradient: Held | None = None

    def moved(self, direction: Mapping[str, Tensor]) -> Tensor:
        """Return what the direction of the layer's own parameters makes of its output."""
        bias = None if self.bias is None else direction[self.bias]
        if self.weight is None or self.inputs is None:
            assert bias is not None
            return bias.expand(len(_value(self.gradient)), -1).contiguous()
        along = direction[self.weight].t() if self.transposed else direction[self.weight]
        rows = self.inputs.value()
        return torch.mm(rows, along) if bias is None else torch.addmm(bias, rows, along)


@dataclass
class LayerRecord:
    """The layers between the optimised parameters and the losses of `samples`.

    Attributes:
        losses: what `backward` sent to the losses.
        listening: whether such gradients are kept.
    """

    samples: int
    layers: list[Layer] = field(default_factory=list)
    losses: Held | None = None
    listening: bool = False

    def listen_to(self, losses: Tensor, live: Mapping[str, Tensor]) -> None:
        """Send gradients of `losses` ``(batch,)`` through the layers, to their biases where they have such; keep them.

        (What a bias takes costs nothing, what a weight takes a multiplication.)

        Args:
            losses: what the record is of; their graph stays.
            live: the optimised parameters by name.
        """
        ends = [live[one.bias or one.weight or ""] for one in self.layers]
        torch.autograd.grad(losses.sum(), ends, retain_graph=True)

    @torch.no_grad()
    def row_products(self, direction: Mapping[str, Tensor]) -> Tensor:
        """Return t_i ``(batch,)``.

        Raises:
            Unusable: what is held was written to since, `backward` has not been through all of it, or some sample has
                left no trace in the gradient.
        """
        scale = _value(self.losses)
        if not (bool(scale.all()) and all_finite([scale])):
            raise Unusable("a sample of weight 0 has left no trace in the gradient")
        found = [_rows(one.moved(direction), _value(one.gradient), self.samples) for one in self.layers]
        return torch.stack(found).sum(0) / scale


def per_sample(output: Tensor, gradient: Tensor, samples: int) -> Tensor:
    """Return <output_i, gradient_i> ``(samples,)``, in float32 at least."""
    if gradient.shape != output.shape or output.shape[:1] == () or output.shape[0] % samples:
        raise Unusable("an output that is not laid out by samples")
    dtype = torch.promote_types(output.dtype, torch.float32)
    rows, others = (one.reshape(samples, -1).to(dtype) for one in (output, gradient))
    return torch.linalg.vecdot(rows, others)


def _rows(moved: Tensor, gradient: Tensor, samples: int) -> Tensor:
    """Return `per_sample`, written over what moved where that is a table in a precision to sum up in."""
    if moved.shape == gradient.shape and moved.dtype == gradient.dtype in (torch.float32, torch.float64):
        return moved.mul_(gradient).sum(1)
    return per_sample(moved, gradient, samples)


def _value(held: Held | None) -> Tensor:
    if held is None:
        raise Unusable("no gradient has come by: backward has not run")
    return held.value()


_CHAINS: weakref.WeakKeyDictionary[Any, weakref.WeakKeyDictionary[nn.Module, bool]] = weakref.WeakKeyDictionary()
"""By objective and module, whether its last forward pass was such a chain."""


def kept_forward(
    objective: Any, module: nn.Module, live: Mapping[str, Tensor], plain: bool, losses_of: Callable[[], Tensor]
) -> tuple[Tensor, ForwardRecord | LayerRecord | None]:
    """Return the losses ``(batch,)`` and what was kept of their forward pass.

    Args:
        objective: of `module`.
        live: the optimised parameters by name.
        plain: no sample has the weight 0, and autocast is off; else every operator is looked at.
        losses_of: returns the losses.
    """
    try:
        known: Any = _CHAINS.setdefault(objective, weakref.WeakKeyDictionary())
    except TypeError:  # nothing that a note can be kept of
        known = {}
    if plain and known.get(module, False):
        losses = losses_of()
        chain = layers_of(losses, live)
        known[module] = chain is not None
        return losses, chain
    with Recording(live, listen=True) as recording:
        losses = losses_of()
    known[module] = plain and layers_of(losses, live, listen=False) is not None
    return losses, recording.forward_record(losses)


def layers_of(losses: Tensor, live: Mapping[str, Tensor], listen: bool = True) -> LayerRecord | None:
    """Return the layers of a chain; None where the graph of the losses is no such.

    Args:
        losses: ``(batch,)``.
        live: the optimised parameters by name.
        listen: note gradients when `backward` comes by.
    """
    record, node = LayerRecord(len(losses)), losses.grad_fn
    names = {id(p): name for name, p in live.items()}
    found: list[tuple[Any, Layer]] = []
    while node is not None:
        kind = type(node).__name__
        if kind in _AFFINE:
            layer = _AFFINE[kind](node, names, len(losses))
            if layer is None:
                return None
            if layer.weight is not None or layer.bias is not None:
                found.append((node, layer))
            node = node.next_functions[_ENTERS[kind]][0]
        elif kind in _OF_ENTRIES or (kind in _OF_ROWS and _OF_ROWS[kind](node)):
            if node is losses.grad_fn and kind not in _LOSSES:
                return None
            if any(other is not None for other, _ in node.next_functions[1:]):
                return None
            node = node.next_functions[0][0]
        else:
            return None
    if not found:
        return None
    record.layers = [layer for _, layer in found]
    if listen:
        losses.register_hook(_Listener(record, None))
        for one, layer in found:
            one.register_prehook(_Listener(record, layer))
    return record


class _Listener:
    """Keeps a gradient as `backward` passes by."""

    def __init__(self, record: LayerRecord, layer: Layer | None) -> None:
        self._record, self._layer = record, layer

    def __call__(self, gradient: Any) -> None:
        one = gradient[0] if isinstance(gradient, tuple) else gradient
        if not self._record.listening:
            return
        held = None if one is None else held_gradient(one)
        if self._layer is None:
            self._record.losses = held
        else:
            self._layer.gradient = held


def _addmm(node: Any, names: Mapping[int, str], samples: int) -> Layer | None:
    bias, _, weight = (one for one, _ in node.next_functions)
    if node._saved_alpha != 1 or node._saved_beta != 1:
        return None
    if bias is not None and getattr(getattr(bias, "variable", None), "ndim", 0) != 1:
        return None
    return _layer(weight, bias, names, node, "_saved_mat1", samples)


def _mm(node: Any, names: Mapping[int, str], samples: int) -> Layer | None:
    return _layer(node.next_functions[1][0], None, names, node, "_saved_self", samples)


def _layer(weight: Any, bias: Any, names: Mapping[int, str], node: Any, saved: str, samples: int) -> Layer | None:
    transposed = type(weight).__name__ == "TBackward0"
    variable = getattr(weight.next_functions[0][0] if transposed else weight, "variable", None)
    if weight is not None and variable is None:  # made of parameters by something else
        return None
    held = None
    if id(variable) in names:
        rows = getattr(node, saved)
        if rows.shape[:1] != (samples,):
            return None
        held = Held(rows, 0)
        held.settle()
    name = names.get(id(getattr(bias, "variable", None)))
    return Layer(names.get(id(variable)), name, transposed, held)


_AFFINE: dict[str, Callable[[Any, Mapping[int, str], int], Layer | None]] = {
    "AddmmBackward0": _addmm,
    "MmBackward0": _mm,
}
_ENTERS = {"AddmmBackward0": 1, "MmBackward0": 0}
_OF_ENTRIES = frozenset(
    f"{name}Backward0"
    for name in ("Relu", "Tanh", "Sigmoid", "Gelu", "Silu", "LeakyRelu", "Elu", "Softplus", "Hardtanh", "LogSigmoid")
)


def _along_columns(node: Any) -> bool:
    shape = node._saved_result.shape
    return len(shape) == 2 and node._saved_dim % (1 << 64) in (1, (1 << 64) - 1)


_OF_ROWS: dict[str, Callable[[Any], bool]] = {
    "LogSoftmaxBackward0": _along_columns,
    "NllLossBackward0": lambda node: node._saved_reduction == 0 and node._saved_self.ndim == 2,
}
_LOSSES = frozenset({"NllLossBackward0"})
