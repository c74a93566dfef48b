"""Per-sample derivatives of the newest step from the record of its forward pass.

Two ways, by what the samples do to each other:

- coupled (BatchNorm): a tangent pass over the record, two multiplications a layer where torch's forward mode has three;
- each for itself: t_i = <u, grad l_i> is the sum over the layers of <g_i, what u alone makes of the layer's input>,
  with g_i what `backward` sent to the layer's output, one multiplication a layer (the "ghost" dot product; Goodfellow
  2015 has the norm). `backward` was of sum c_i l_i, whatever c_i: it is read off the losses and divided out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from steelyard._support._finite import all_finite
from steelyard.bilevel.step import Tensors
from steelyard.bilevel.sweep.forward_rules import Call
from steelyard.bilevel.sweep.graph_record import ForwardRecord, Held, Link, Note, Unusable
from steelyard.bilevel.sweep.layer_record import per_sample

__all__ = ["row_products", "tangents"]


@torch.no_grad()
def tangents(forward_record: ForwardRecord, at: Tensors, direction: Tensors) -> Tensor:
    """Return t_i ``(batch,)`` by a tangent pass over the record.

    Args:
        forward_record: of the step.
        at: its parameters, those that it was recorded at.
        direction: u.

    Raises:
        Unusable: something that the record holds was written to since, or an operator has no derivative.
    """
    state = _Pass(forward_record, at, direction)
    for note in forward_record.notes:
        state.take(note)
    found = state.moved.get(forward_record.losses)
    if found is None:
        raise Unusable("the losses do not move with the parameters")
    return found


@torch.no_grad()
def row_products(forward_record: ForwardRecord, at: Tensors, direction: Tensors) -> Tensor:
    """Return t_i ``(batch,)`` for losses that do not depend on each other's samples, which the caller makes sure of.

    Raises:
        Unusable: as `tangents`; or `backward` has not been through all of it, or an output is not laid out by samples,
            or some c_i is 0.
    """
    scale = _gradient(forward_record, forward_record.losses)
    if not (bool(scale.all()) and all_finite([scale])):
        raise Unusable("a sample of weight 0 has left no trace in the gradient")
    state, total = _Pass(forward_record, at, direction), torch.zeros_like(scale)
    read = {slot for note in forward_record.notes for slot in note.reads} | {forward_record.losses}
    for note in forward_record.notes:
        if note.parametric:
            state.take(note)
            continue
        outputs = state.of(note)
        for slot, output in zip(note.slots, outputs, strict=False):
            if output is not None and slot in read:
                total += per_sample(output, _gradient(forward_record, slot), forward_record.samples)
    return total / scale


@dataclass
class _Pass:
    """Values of parameters and their views, and tangents, by slot; a tangent goes after its last reader."""

    forward_record: ForwardRecord
    at: Tensors
    direction: Tensors
    values: dict[int, Tensor] = field(default_factory=dict)
    moved: dict[int, Tensor] = field(default_factory=dict)
    left: Counter[int] = field(default_factory=Counter)
    memory: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        for note in self.forward_record.notes:
            self.left.update(note.reads)
        for slot, name in self.forward_record.names.items():
            self.values[slot], self.moved[slot] = self.at[name], self.direction[name]
            self.left[slot] += 1  # they are the caller's: never given up, never written over
            self.memory[_memory(self.direction[name])] += 1

    def take(self, note: Note) -> None:
        """Enter the tangents of the outputs of `note`."""
        outputs = self.of(note)
        for slot in note.reads:
            self.left[slot] -= 1
            if not self.left[slot] and slot in self.moved:
                self.memory[_memory(self.moved.pop(slot))] -= 1
        for place, output in zip(note.slots, outputs, strict=False):
            if place is not None and output is not None:
                self.moved[place] = output
                self.memory[_memory(output)] += 1

    def of(self, note: Note) -> Sequence[Tensor | None]:
        """Return the tangents of the outputs of `note`, as far as its arguments have any."""
        values = tuple(self._value(one) for one in note.args)
        if note.view:
            made = note.op(*values, **note.kwargs)
            views = made if isinstance(made, (list, tuple)) else (made,)
            self.values.update((slot, one) for slot, one in zip(note.slots, views, strict=True) if slot is not None)
        moved = tuple(self._moved(one) for one in note.args)
        if all(one is None for one in moved):
            return ()
        outputs = tuple(None if one is None else one.value() for one in note.outputs)
        call = Call(note.op, values, note.kwargs, moved, outputs, note.shapes, self._spare(note))
        found = note.rule.tangents(call)
        for one, shape in zip(found, note.shapes, strict=False):
            if one is not None and one.shape != shape:
                raise Unusable(f"the tangent of {note.op} has another shape than its output")
        return found

    def _value(self, value: Any) -> Any:
        if isinstance(value, Link):
            return self.values.get(value.slot) if value.held is None else value.held.value()
        if isinstance(value, Held):
            return value.value()
        return [self._value(one) for one in value] if isinstance(value, list) else value

    def _moved(self, value: Any) -> Any:
        if isinstance(value, Link):
            return self.moved.get(value.slot)
        if isinstance(value, list):
            found = [self._moved(one) for one in value]
            return found if any(one is not None for one in found) else None
        return None

    def _spare(self, note: Note) -> frozenset[int]:
        """Positions whose tangents are read here for the last time, alone in their memory and filling it."""
        found = set()
        for position, one in enumerate(note.args):
            moved = self.moved.get(one.slot) if isinstance(one, Link) else None
            if moved is None or self.left[one.slot] != 1 or self.memory[_memory(moved)] != 1:
                continue
            if moved.numel() * moved.element_size() == moved.untyped_storage().nbytes():
                found.add(position)
        return frozenset(found)


def _gradient(forward_record: ForwardRecord, slot: int | None) -> Tensor:
    held = None if slot is None else forward_record.gradients.get(slot)
    if held is None:
        raise Unusable("no gradient has come by: backward has not run")
    return held.value()


def _memory(value: Tensor) -> int:
    return int(value.untyped_storage()._cdata)
