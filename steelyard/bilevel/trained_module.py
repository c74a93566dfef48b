"""What the recorder reads off the module that is trained: its wrappers, its parameters' names, its buffers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from steelyard._support._modules import first_parameter, named_parameters_of, parameters_of
from steelyard.bilevel.objective import Objective, WeightedLoss
from steelyard.bilevel.step import Tensors

__all__ = [
    "autocast_of",
    "averaged_over",
    "buffer_versions",
    "buffers_changed",
    "check_ranks",
    "counts_no_batches",
    "optimized_names",
    "same_random_state",
    "unwrap",
    "wrappers",
]


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside `torch.compile` and DDP wrappers."""
    return list(wrappers(model))[-1]


def wrappers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield `model`, what it wraps, and so on to the module itself."""
    inner: nn.Module | None = model
    while inner is not None:
        model = inner
        yield model
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module


def averaged_over(model: nn.Module) -> int:
    """Return over how many processes the gradients are averaged (DistributedDataParallel)."""
    for wrapper in wrappers(model):
        if isinstance(wrapper, nn.parallel.DistributedDataParallel):
            return torch.distributed.get_world_size(wrapper.process_group)
    return 1


def check_ranks(model: nn.Module, objective: Objective) -> None:
    """Raise where the gradients would not be those of the inner loss over the batch of all ranks."""
    averaged = averaged_over(model)
    ranks = objective.ranks.size if isinstance(objective, WeightedLoss) else 1
    if ranks == averaged:
        return
    if ranks == 1:
        raise ValueError(
            f"under DistributedDataParallel on {averaged} ranks the inner loss must be that of the whole batch, of "
            "which each rank has a share: give a WeightedLoss(..., ranks=Processes()) (steelyard.distributed)"
        )
    raise ValueError(
        f"objective.ranks are {ranks} processes, but the gradients of the model are averaged over {averaged}: wrap it "
        "in DistributedDataParallel over the same group, or leave out ranks"
    )


def optimized_names(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[Tensor, str]:
    """Return the name of every parameter that the optimizer trains, in the optimizer's order."""
    names: dict[Tensor, str] = {p: name for name, p in named_parameters_of(module).items()}
    for number, group in enumerate(optimizer.param_groups):
        for position, p in enumerate(group["params"]):
            if p not in names:
                raise ValueError(
                    f"tensor {position} of optimizer group {number}, shape {tuple(p.shape)}, is not a parameter of the "
                    "model: give Recorder the module that holds all that the optimizer trains"
                )
            if p.is_complex():
                raise TypeError(
                    f"parameter {names[p]!r} is complex ({p.dtype}), of which the updates have other derivatives: hold "
                    "it as a real parameter with a last axis of 2, and use torch.view_as_complex in forward"
                )
    return {p: names[p] for p in parameters_of(optimizer)}


def autocast_of(module: nn.Module) -> tuple[str, torch.dtype] | None:
    """Return the device type and dtype of the autocast that is on, if any."""
    first = first_parameter(module)
    assert first is not None  # the optimizer has some
    device = first.device.type
    return (device, torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None


def buffer_versions(modules: list[nn.Module]) -> list[int]:
    """Return the version counter of every buffer."""
    return [buffer._version for module in modules for buffer in module._buffers.values() if buffer is not None]


def counts_no_batches(modules: list[nn.Module]) -> bool:
    """BatchNorm that normalises by the batch and counts none: it may leave its buffers as they were."""
    return any(
        isinstance(m, nn.modules.batchnorm._BatchNorm)
        and (m.running_mean is None or (m.training and m.num_batches_tracked is None))
        for m in modules
    )


def buffers_changed(module: nn.Module, buffers: Tensors) -> bool:
    """Whether a forward pass changed a buffer, by value, or made one."""
    return any(
        name not in buffers or not (value is buffers[name] or torch.equal(value, buffers[name]))
        for name, value in module.named_buffers()
    )


def same_random_state(one: tuple[Tensor, Tensor | None], other: tuple[Tensor, Tensor | None]) -> bool:
    """Whether the generators of torch stand where they stood (`step.random_state`)."""
    same_cuda = one[1] is None or other[1] is None or torch.equal(one[1], other[1])
    return torch.equal(one[0], other[0]) and same_cuda
