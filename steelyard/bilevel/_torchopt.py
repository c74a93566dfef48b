"""Differentiable steps by the library TorchOpt (Ren et al. 2023), through its functional optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchopt
from torch import Tensor

from steelyard.bilevel._torch_stepper import check_schedule, double_scalars
from steelyard.bilevel.step import Step, Tensors

__all__ = ["TorchOptStepper"]


class TorchOptStepper:
    """One functional TorchOpt optimizer a parameter, so that groups and schedules carry over.

    Raises:
        TypeError: an optimizer or option without a TorchOpt twin (NAdam, AMSGrad).
    """

    def __init__(self, kind: type[torch.optim.Optimizer], first: Step) -> None:
        if kind not in _MAKERS:
            raise TypeError(f"torchopt has no {kind.__name__}; it has {', '.join(one.__name__ for one in _MAKERS)}")
        self.first = first
        self.rate: dict[str, float] = {}
        self.optimizers, self.state = {}, {}
        for name, parameter in first.parameters.items():
            group = {**first.groups[name], "lr": lambda count, name=name: self.rate[name]}
            self.rate[name] = first.groups[name]["lr"]
            optimizer = self.optimizers[name] = _MAKERS[kind](group)
            one, fresh = {name: parameter}, optimizer.init({name: parameter})
            if isinstance(first.full_state[name].get("momentum_buffer"), Tensor):
                # Its momentum knows a first step by a flag inside of the optimizer, not by its state: take one.
                optimizer.update({name: torch.zeros_like(parameter)}, fresh, params=one, inplace=False)
            self.state[name] = _filled(fresh, first.full_state[name])

    def step(self, step: Step, parameters: Tensors, loss: Tensor) -> Tensors:
        """See `Stepper.step`."""
        check_schedule("torchopt", self.first, step)
        names = [name for name in parameters if name not in step.skipped]
        gradients = torch.autograd.grad(
            loss, [parameters[name] for name in names], create_graph=True, allow_unused=True, materialize_grads=True
        )
        after = dict(parameters)
        for name, gradient in zip(names, gradients, strict=True):
            one, optimizer = {name: parameters[name]}, self.optimizers[name]
            self.rate[name] = step.groups[name]["lr"]
            with double_scalars():
                updates, self.state[name] = optimizer.update(
                    {name: gradient}, self.state[name], params=one, inplace=False
                )
            after[name] = torchopt.apply_updates(one, updates, inplace=False)[name]
        return after


def _filled(state: Any, recorded: dict[str, Any]) -> Any:
    """Put the recorded moments into a fresh state: nested tuples, those with named fields holding one-tensor lists."""
    if not hasattr(state, "_fields"):
        return tuple(_filled(one, recorded) for one in state) if isinstance(state, tuple) else state
    values = {}
    for field in state._fields:
        entry = next((key for key in _ENTRIES.get(field, ()) if isinstance(recorded.get(key), Tensor)), None)
        if entry is not None:
            (old,) = getattr(state, field)
            values[field] = [recorded[entry].to(old.dtype).reshape(old.shape)]
    return state._replace(**values)


_ENTRIES = {
    "trace": ("momentum_buffer",),
    "mu": ("exp_avg", "grad_avg"),
    "nu": ("exp_avg_sq", "square_avg"),
    "count": ("step",),
    "sum_of_squares": ("sum",),
}


def _shared(group: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: group[key] for key in keys}


def _sgd(group: dict[str, Any]) -> Any:
    return torchopt.sgd(**_shared(group, "lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize"))


def _adam(group: dict[str, Any]) -> Any:
    _refuse(group, "amsgrad")
    if group.get("decoupled_weight_decay", False):
        return _adamw(group)
    return torchopt.adam(**_shared(group, "lr", "betas", "eps", "weight_decay", "maximize"))


def _adamw(group: dict[str, Any]) -> Any:
    _refuse(group, "amsgrad")
    return torchopt.adamw(**_shared(group, "lr", "betas", "eps", "weight_decay", "maximize"))


def _rmsprop(group: dict[str, Any]) -> Any:
    return torchopt.rmsprop(**_shared(group, "lr", "alpha", "eps", "weight_decay", "momentum", "centered", "maximize"))


def _adagrad(group: dict[str, Any]) -> Any:
    return torchopt.adagrad(
        **_shared(group, "lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps", "maximize")
    )


def _refuse(group: dict[str, Any], option: str) -> None:
    if group.get(option):
        raise TypeError(f"torchopt has no {option}; use Truncated, or backend='torch'")


_MAKERS: dict[type[torch.optim.Optimizer], Callable[[dict[str, Any]], Any]] = {
    torch.optim.SGD: _sgd,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adamw,
    torch.optim.RMSprop: _rmsprop,
    torch.optim.Adagrad: _adagrad,
}
