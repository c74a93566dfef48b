"""Do the operators of a forward pass show by themselves that samples do not touch each other?

Where row i of every tensor on the way reaches row i of the next one only, and at the end loss i, nothing couples the
samples. Known operators are looked at one by one, in the way they were called; for any other the answer is no, which
says that it is not known, not that samples couple.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from steelyard.bilevel.sweep.graph_record import ForwardRecord, Link, Note

__all__ = ["separate"]

aten = torch.ops.aten
Fits = Callable[[Note, Sequence[torch.Size]], bool]
"""From a call and the shapes of its arguments (of rows) to whether it stays within rows."""


def separate(forward_record: ForwardRecord) -> bool:
    """Return whether every operator after the parameters keeps row i to row i; False where one is not known."""
    parametric = set(forward_record.names).union(*(note.slots for note in forward_record.notes if note.parametric))
    read = {slot for note in forward_record.notes for slot in note.reads} | {forward_record.losses}
    rows: dict[int, torch.Size] = {}
    for note in forward_record.notes:
        if note.parametric:
            continue
        if any(slot not in parametric and slot not in rows for slot in note.reads):
            return False  # a leaf that is not optimised, or made of one: its rows are not known
        places = {
            place: rows[one.slot]
            for place, one in enumerate(note.args)
            if isinstance(one, Link) and one.slot not in parametric
        }
        if len(places) < sum(slot not in parametric for slot in note.reads):  # rows in a list
            return False
        if places:
            allowed, fits = _KNOWN.get(note.op, ((), _never))
            if not set(places) <= set(allowed) or not fits(note, list(places.values())):
                return False
        for slot, shape in zip(note.slots, note.shapes, strict=True):
            if slot in read and slot is not None:
                if shape[:1] != (forward_record.samples,):
                    return False
                rows[slot] = shape
    return rows.get(forward_record.losses) == (forward_record.samples,)


def _never(note: Note, shapes: Sequence[torch.Size]) -> bool:
    return False


def _always(note: Note, shapes: Sequence[torch.Size]) -> bool:
    return True


def _aligned(note: Note, shapes: Sequence[torch.Size]) -> bool:
    """No rows are broadcast: along which axis they would be is not looked at."""
    return all(shape == note.shapes[0] for shape in shapes)


def _over(position: int) -> Fits:
    """Within rows where the axes of the argument `position` leave out the first."""

    def fits(note: Note, shapes: Sequence[torch.Size]) -> bool:
        axes: Any = note.args[position] if len(note.args) > position else None
        listed = [axes] if isinstance(axes, int) else list(axes or ())
        return bool(listed) and all(axis % len(shapes[0]) for axis in listed)

    return fits


def _has(position: int, value: int) -> Fits:
    return lambda note, shapes: len(note.args) > position and note.args[position] == value


_KNOWN: dict[Any, tuple[Sequence[int], Fits]] = {
    aten.addmm.default: ((1,), _always),
    aten.mm.default: ((0,), _always),
    aten.convolution.default: ((0,), _always),
    aten.native_group_norm.default: ((0,), _always),
    aten.native_layer_norm.default: ((0,), lambda note, shapes: len(note.args[1]) < len(shapes[0])),
    aten.native_batch_norm.default: ((0,), _has(5, False)),
    aten._log_softmax.default: ((0,), _over(1)),
    aten._softmax.default: ((0,), _over(1)),
    aten.mean.dim: ((0,), _over(1)),
    aten.sum.dim_IntList: ((0,), _over(1)),
    **dict.fromkeys([aten.squeeze.dim, aten.select.int, aten.slice.Tensor], ((0,), _over(1))),
    aten.nll_loss_forward.default: ((0,), _has(3, 0)),
    aten.binary_cross_entropy_with_logits.default: ((0,), _has(4, 0)),
    aten.mse_loss.default: ((0,), _has(2, 0)),
    **dict.fromkeys([aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.mul.Tensor], ((0, 1), _aligned)),
    # Shapes are looked at by `separate`: these keep the order of the entries, so equal first axes keep the rows.
    **dict.fromkeys([aten.view.default, aten._unsafe_view.default, aten._reshape_alias.default], ((0,), _always)),
    **dict.fromkeys([aten.relu.default, aten.relu_.default, aten.gelu.default, aten.silu.default], ((0,), _always)),
    **dict.fromkeys([aten.tanh.default, aten.sigmoid.default, aten.elu.default, aten.neg.default], ((0,), _always)),
    **dict.fromkeys([aten._to_copy.default, aten.clone.default, aten.alias.default], ((0,), _always)),
    **dict.fromkeys([aten.pow.Tensor_Scalar, aten.abs.default, aten.exp.default, aten.log.default], ((0,), _always)),
    **dict.fromkeys([aten.sqrt.default, aten.rsqrt.default, aten.log1p.default, aten.expm1.default], ((0,), _always)),
    **dict.fromkeys([aten.leaky_relu.default, aten.softplus.default, aten.hardtanh.default], ((0,), _always)),
    aten.clamp.default: ((0,), _always),
    aten.div.Tensor: ((0, 1), _aligned),
    aten.bmm.default: ((0, 1), _always),
    **dict.fromkeys([aten.add.Scalar, aten.mul.Scalar, aten.div.Scalar], ((0,), _always)),
    **dict.fromkeys(
        [aten._adaptive_avg_pool2d.default, aten.avg_pool2d.default, aten.max_pool2d_with_indices.default],
        ((0,), lambda note, shapes: len(shapes[0]) == 4),
    ),
}
