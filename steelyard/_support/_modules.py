"""A module in evaluation mode for a while, its last linear layer, its logits, and what an optimizer moves of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["class_logits", "evaluating", "inputs_of_last_linear", "last_linear", "parameters_of"]


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
