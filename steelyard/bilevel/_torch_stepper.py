"""A window trained again by `torch.optim` itself, differentiably, and what the libraries' steppers share with it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from steelyard.bilevel.step import Step, Tensors

__all__ = ["TorchStepper", "check_schedule", "double_scalars", "options"]


class TorchStepper:
    """`torch.optim` with ``differentiable=True``, made again for every step around fresh, non-leaf parameters."""

    def __init__(self, kind: type[torch.optim.Optimizer], first: Step) -> None:
        self.kind = kind
        for name, group in first.groups.items():
            started = first.full_state[name].get("momentum_buffer") is not None
            if kind is torch.optim.SGD and group["momentum"] and not started:
                raise TypeError(
                    "torch's differentiable SGD detaches the first momentum buffer, and its derivative is wrong from a "
                    "cold start; use Truncated, or backend='torchopt' or 'higher'"
                )
        # Counts of steps are float32 tensors there, in which 1 - beta^t is off by up to 1e-3.
        self.state: dict[str, dict[str, Any]] = {
            name: {
                key: one.double() if key == "step" and isinstance(one, Tensor) else one for key, one in state.items()
            }
            for name, state in first.full_state.items()
        }

    def step(self, step: Step, parameters: Tensors, loss: Tensor) -> Tensors:
        """See `Stepper.step`."""
        names = [name for name in parameters if name not in step.skipped]
        gradients = torch.autograd.grad(
            loss, [parameters[name] for name in names], create_graph=True, allow_unused=True, materialize_grads=True
        )
        after = {name: p.clone() for name, p in parameters.items()}
        groups = [{**options(self.kind, step.groups[name]), "params": [after[name]]} for name in names]
        optimizer = self.kind(groups, differentiable=True)  # type: ignore[call-arg]
        for name, gradient in zip(names, gradients, strict=True):
            # The update writes into its state in place; the graph needs the old values.
            old = self.state[name]
            optimizer.state[after[name]] = {k: v.clone() if isinstance(v, Tensor) else v for k, v in old.items()}
            after[name].grad = gradient
        with double_scalars():
            optimizer.step()
        for name in names:
            self.state[name] = dict(optimizer.state[after[name]])
            after[name].grad = None
        return after


def options(kind: type[torch.optim.Optimizer], group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a group that a twin's constructor takes; none of its fused or multi-tensor kernels."""
    skip = {"params", "foreach", "fused", "capturable", "differentiable"}
    known = inspect.signature(kind).parameters
    return {key: value for key, value in group.items() if key not in skip and key in known}


@contextmanager
def double_scalars() -> Iterator[None]:
    """Inside, numbers that become tensors are float64: the libraries' counts of steps, in whose float32 1 - beta^t is
    off by 1e-5 and more. (A tensor without dimensions leaves the precision of the others alone.)
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def check_schedule(backend: str, first: Step, step: Step) -> None:
    """Raise TypeError where a setting other than the learning rate moves inside of the window."""
    for name, group in step.groups.items():
        moved = [k for k, v in group.items() if k not in ("lr", "initial_lr") and v != first.groups[name].get(k, v)]
        if moved:
            raise TypeError(
                f"{backend} follows a schedule of the learning rate only, but {moved[0]} of {name!r} moves too; use "
                "Truncated, or backend='torch'"
            )
