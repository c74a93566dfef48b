"""A module's parts, its evaluation mode for a while, its last linear layer, its logits, what an optimizer moves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = [
    "class_logits",
    "evaluating",
    "first_parameter",
    "inputs_of_last_linear",
    "last_linear",
    "named_modules_of",
    "named_parameters_of",
    "parameters_of",
]


def named_modules_of(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return what ``module.named_modules()`` yields, in a third of the time: a recorded step walks often.

    Example:
        >>> [name for name, _ in named_modules_of(nn.Sequential(nn.Sequential(nn.ReLU()), nn.ReLU()))]
        ['', '0', '0.0', '1']
    """
    found: list[tuple[str, nn.Module]] = []
    seen: set[nn.Module] = set()
    pending = [("", module)]
    while pending:
        prefix, one = pending.pop()
        if one in seen:
            continue
        seen.add(one)
        found.append((prefix, one))
        if one._modules:
            start = f"{prefix}." if prefix else ""
            children = [(start + name, child) for name, child in one._modules.items() if child is not None]
            pending += children[::-1]
    return found


def named_parameters_of(module: nn.Module) -> dict[str, Tensor]:
    """Return ``dict(module.named_parameters())``: each parameter once, under its first name."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for prefix, one in named_modules_of(module):
        for name, p in one._parameters.items():
            if p is not None and id(p) not in seen:
                seen.add(id(p))
                found[f"{prefix}.{name}" if prefix else name] = p
    return found


def first_parameter(module: nn.Module) -> Tensor | None:
    """Return the first of ``module.parameters()``, or what stands in for it; None if there is none."""
    for one in module.modules():
        for p in one._parameters.values():
            if p is not None:
                return p
    return None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode, then each back into its own: parts of a model may be frozen."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def last_linear(model: nn.Module) -> nn.Linear:
    """Return the model's last `nn.Linear`: what goes into it is the embedding h, in every net.

    Raises:
        ValueError: the model has none.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no nn.Linear, whose inputs would be its embedding of a sample")
    return layers[-1]


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters of all groups of an optimizer, in its order; they may be tensors without a module."""
    return [p for group in optimizer.param_groups for p in group["params"]]


@contextmanager
def inputs_of_last_linear(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what goes into `last_linear`, one tensor ``(samples, features)`` for each forward pass inside."""
    found: list[Tensor] = []

    def collect(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        found.append(inputs[0].flatten(1))

    handle = last_linear(model).register_forward_pre_hook(collect)
    try:
        yield found
    finally:
        handle.remove()


def class_logits(outputs: Tensor) -> Tensor:
    """Return a logit per class: one logit, the log-odds of class 1, becomes the pair (0, logit)."""
    return torch.cat([torch.zeros_like(outputs), outputs], dim=-1) if outputs.shape[-1] == 1 else outputs
