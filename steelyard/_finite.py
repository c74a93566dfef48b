"""What is said when training meets a NaN or an infinity: the step, the tensor's name, the samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["all_finite", "named_culprits", "some_ids"]

_SHOWN = 5


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Return whether no entry is NaN or infinite: by one sum of each, and one look at the total."""
    sums = [tensor.detach().sum().float() for tensor in tensors]
    if not sums or bool(torch.isfinite(torch.stack(sums).sum())):
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


def named_culprits(model: nn.Module, inputs: Tensor, ids: Tensor) -> str:
    """Return where NaNs or infinities are: inputs (with their samples), parameters, else gradients; "" for nowhere."""
    rows = torch.isfinite(inputs.flatten(1)).all(1) if inputs.is_floating_point() else torch.ones(len(inputs)) > 0
    found = [] if bool(rows.all()) else [f"the inputs of {some_ids(ids[~rows])}"]
    named = [*model.named_parameters(), *model.named_buffers()]
    broken = [f"{name!r} of the model" for name, value in named if not all_finite([value])]
    if not broken:
        broken = [f"the gradient of {n!r}" for n, p in named if p.grad is not None and not all_finite([p.grad])]
    return " and ".join([*found, *broken[:1]])
