"""What is said when training meets a NaN or an infinity: the step, the tensor's name, the samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from steelyard._support._nested import Nested, named_tensors

__all__ = ["all_finite", "broken_samples", "named_culprits", "some_ids"]

_SHOWN = 5


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Return whether no entry is NaN or infinite: by one sum of each, and one look at the total."""
    if not tensors:
        return True
    with torch.no_grad():
        total = float(torch.stack([tensor.sum() for tensor in tensors]).sum())
    if math.isfinite(total):
        return True
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)  # finite entries may have an infinite sum


def some_ids(ids: Tensor) -> str:
    """Return global sample ids for a message: the first few, and how many there are.

    Example:
        >>> some_ids(torch.arange(8)), some_ids(torch.tensor([4]))
        ('samples 0, 1, 2, 3, 4, ... (8 of them)', 'sample 4')
    """
    shown = ", ".join(map(str, ids[:_SHOWN].tolist()))
    if len(ids) > _SHOWN:
        return f"samples {shown}, ... ({len(ids)} of them)"
    return f"sample{'' if len(ids) == 1 else 's'} {shown}"


def broken_samples(pieces: Iterable[tuple[Nested, Tensor, Tensor]]) -> str:
    """Return which samples hold NaNs or infinities, and in which tensor; "" for none.

    Args:
        pieces: inputs, targets and ids, some samples at a time.
    """
    ids: dict[str, list[Tensor]] = {}
    for inputs, targets, index in pieces:
        for name, values in (*named_tensors("inputs", inputs), ("targets", targets)):
            ids.setdefault(name, []).append(index[~_whole_rows(values)])
    found = {name: torch.cat(of) for name, of in ids.items()}
    return " and ".join(f"the {name} of {some_ids(of)}" for name, of in found.items() if len(of))


def _whole_rows(values: Tensor) -> Tensor:
    """Return ``(n,)``, whether all entries of each row are finite."""
    if not values.is_floating_point():
        return torch.ones(len(values), dtype=torch.bool, device=values.device)
    return torch.isfinite(values.reshape(len(values), -1)).all(1)


def named_culprits(model: nn.Module, inputs: Nested, ids: Tensor, gradients: bool = False) -> str:
    """Return where NaNs or infinities are: inputs (with their samples), the model, else `gradients`; "" for nowhere."""
    broken = {name: ids[~_whole_rows(values)] for name, values in named_tensors("inputs", inputs)}
    found = [f"the {name} of {some_ids(of)}" for name, of in broken.items() if len(of)]
    named = [*model.named_parameters(), *model.named_buffers()]
    held = [f"{name!r} of the model" for name, value in named if not all_finite([value])]
    if gradients and not held:
        held = [f"the gradient of {n!r}" for n, p in named if p.grad is not None and not all_finite([p.grad])]
    return " and ".join([*found, *held[:1]])
