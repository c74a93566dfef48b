"""Is a pass over stacked modules what each of them would have done by itself? Found out by doing both, once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from steelyard.bilevel.alike import TOLERANCE, alike
from steelyard.bilevel.batch import Batch, joined
from steelyard.bilevel.objective import WeightedLoss
from steelyard.bilevel.products import gradient_of
from steelyard.bilevel.stacked import Stacked
from steelyard.bilevel.stacked_record import Part
from steelyard.bilevel.step import cuda_devices, random_state
from steelyard.bilevel.trained_module import buffers_changed, counts_no_batches, same_random_state

__all__ = ["has_hooks", "products_of", "stacked_batch", "why_not_alike"]

aten = torch.ops.aten
_WEIGHT = {
    aten.mm.default: 1,
    aten.bmm.default: 1,
    aten.addmm.default: 2,
    aten.baddbmm.default: 2,
    aten.convolution.default: 1,
}
"""Which argument of an operator it multiplies by."""
_UNABLE = (RuntimeError, TypeError, ValueError, NotImplementedError, AssertionError, AttributeError, LookupError)


def stacked_batch(parts: Sequence[Part], objectives: Sequence[WeightedLoss], more: int = 0) -> Part:
    """Return the batch of all members, and weights by which the sum of its losses is the sum of the members' losses.

    A batch that is smaller than the largest is filled up with its own first samples at weight 0, each with `more` rows.
    """
    rows = max(len(batch) for batch, _ in parts) + more
    batches, weights = [], []
    for (batch, weight), objective in zip(parts, objectives, strict=True):
        missing = rows - len(batch)
        share = weight / objective.divisor(weight)
        if missing:
            batch = batch.take(torch.arange(rows, device=batch.index.device) % len(batch))
            share = torch.cat([share, share.new_zeros(missing)])
        batches.append(batch)
        weights.append(share)
    return joined(batches), torch.cat(weights)


def has_hooks(module: nn.Module) -> bool:
    """Whether something listens to a forward or backward pass of `module`: it would hear one pass of M."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    heard = any(getattr(one, name, None) for one in module.modules() for name in hooks)
    return heard or any(p._backward_hooks or p._post_accumulate_grad_hooks for p in module.parameters())


def products_of(module: nn.Module, objective: WeightedLoss, batch: Batch) -> float:
    """Return how often the matrix products and convolutions of one forward pass multiply; infinity if it fails."""
    with torch.random.fork_rng(cuda_devices(module)), torch.no_grad(), _Products() as products:
        try:
            objective.sample_losses(module, batch)
        except _UNABLE:
            return math.inf
    return float(products.count)


class _Products(TorchDispatchMode):
    """Counts products: of `torch.utils.flop_counter` the first use alone takes more than a second."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func in _WEIGHT:
            weight = args[_WEIGHT[func]]
            self.count += found.numel() * (weight[0].numel() if func is aten.convolution.default else weight.shape[-2])
        return found


def why_not_alike(
    stacked: Stacked, members: Sequence[nn.Module], objectives: Sequence[WeightedLoss], parts: Sequence[Part]
) -> str:
    """Return why one pass of all would not be one pass of each, by losses and gradients of a step; "" where it is.

    The batches are filled up by a row at least, and a sample is tried alone, so a module that couples its samples or
    looks at how many they are shows.
    """
    weight = parts[0][1]
    if weight.dtype not in TOLERANCE or any(p.dtype not in TOLERANCE for p in stacked.parameters()):
        return "a parameter or a weight is of half precision"
    named = {name: p for name, p in stacked.stacks.items() if p.requires_grad}
    try:
        batch, weight = stacked_batch(parts, objectives, more=1)
        losses = objectives[0].sample_losses(stacked, batch)
        found = dict(zip(named, gradient_of((weight * losses).sum(), list(named.values())), strict=True))
        for number, (member, objective, part) in enumerate(zip(members, objectives, parts, strict=True)):
            own = losses.unflatten(0, (len(members), -1))[number, : len(part[0])]
            slope = {name: one[number] for name, one in found.items()}
            if said := _unlike(member, objective, part, own, slope):
                return said
    except _UNABLE as error:
        return f"torch.func.vmap: {str(error).strip().splitlines()[0] if str(error) else type(error).__name__}"
    return ""


def _unlike(member: nn.Module, objective: WeightedLoss, part: Part, losses: Tensor, slope: dict[str, Tensor]) -> str:
    """Return what is wrong with a member's `losses` and its gradient `slope`, by a pass of that member alone."""
    batch, weight = part
    buffers = {name: one.detach().clone() for name, one in member.named_buffers()}
    with torch.random.fork_rng(cuda_devices(member)):
        before = random_state(member)
        own = objective.sample_losses(member, batch)
        moved = not same_random_state(before, random_state(member))
    coupled = counts_no_batches(list(member.modules())) or buffers_changed(member, buffers)
    with torch.no_grad():
        for name, one in member.named_buffers():
            one.copy_(buffers.get(name, one))
    if moved:
        return "the module draws random numbers"
    if coupled:
        return "the module couples samples, or writes to a buffer"
    if not alike([losses.detach()], [own.detach()]):
        return "a member's losses are others when it is alone"
    if _looks_at_size(member, objective, batch, own.detach()):
        return "the loss of a sample is another in a batch of its own"
    live = dict(member.named_parameters())
    gradient = gradient_of((weight * own).sum() / objective.divisor(weight), [live[name] for name in slope])
    return "" if alike(list(slope.values()), gradient) else "a member's gradient is another when it is alone"


@torch.no_grad()
def _looks_at_size(member: nn.Module, objective: WeightedLoss, batch: Batch, losses: Tensor) -> bool:
    """Whether the first sample has another of `losses` by itself, as one in a small batch may that is filled up."""
    try:
        single = objective.sample_losses(member, batch.take(batch.index.new_zeros(1)))
    except _UNABLE:
        return True
    return not alike([torch.cat([single, losses[1:]])], [losses])
