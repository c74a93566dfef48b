"""What a recorded step keeps of the optimizer: parameters, settings of the groups, state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from steelyard.bilevel.step import Step, Tensors

__all__ = ["copy_into", "dense", "fill_in", "keep_update"]


def keep_update(
    step: Step,
    optimizer: torch.optim.Optimizer,
    names: Mapping[Tensor, str],
    keep: Callable[[dict[str, Any]], dict[str, Any]],
    full_state: bool,
) -> None:
    """Write into `step` the settings and the state that its update is made with.

    Args:
        step: before its update.
        optimizer: of the parameters `names`.
        names: the name of every parameter.
        keep: what the pull-back reads, of a parameter's state.
        full_state: the whole state, too.
    """
    for group in optimizer.param_groups:
        settings = {key: _plain(value) for key, value in group.items() if key != "params"}
        if isinstance(optimizer, torch.optim.AdamW):  # whose groups do not say so before torch 2.7
            settings["decoupled_weight_decay"] = True
        for p in group["params"]:
            name = names[p]
            step.groups[name] = settings
            state = optimizer.state.get(p, {})
            if not step.checkpoint:
                step.state[name] = keep(state)
            if full_state or step.checkpoint:
                step.full_state[name] = {key: _clone(value) for key, value in state.items()}


def fill_in(earlier: Step, step: Step) -> None:
    """Give a step the parameters that a later one is the first to train (`add_param_group`), which it left alone.

    Where one was written to in between, its guard stays, and is broken.
    """
    everything = [earlier.findings, *(one.findings for one in earlier.accumulated)]
    for name in step.parameters.keys() - earlier.parameters.keys():
        what = f"parameter {name!r}"
        if any(guard.broken for findings in everything for guard in findings.guards if guard.what == what):
            continue
        for findings in everything:
            findings.guards = [guard for guard in findings.guards if guard.what != what]
        earlier.parameters[name] = step.parameters[name].clone()
        earlier.skipped |= {name}
        earlier.state[name], earlier.groups[name] = {}, step.groups[name]
        if earlier.full_state:
            earlier.full_state[name] = {}


def copy_into(live: dict[str, Tensor], spare: Tensors) -> Tensors:
    """Copy into the storage of a step that just left the window, where there is one."""
    with torch.no_grad():
        if spare.keys() == live.keys():  # add_param_group makes them more
            torch._foreach_copy_(list(spare.values()), [live[name] for name in spare])
            return spare
        return {name: p.detach().clone() for name, p in live.items()}


def dense(gradient: Tensor, name: str) -> Tensor:
    """Return `gradient`.

    Raises:
        TypeError: it is sparse.
    """
    if gradient.layout != torch.strided:
        raise TypeError(f"the gradient of {name!r} is sparse, which is not supported; use sparse=False")
    return gradient


def _clone(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value
