"""Differentiable steps by the library `higher` (Grefenstette et al. 2019)."""

from __future__ import annotations

from typing import Any

import higher
import torch
from torch import Tensor

from steelyard.bilevel._torch_stepper import check_schedule, options
from steelyard.bilevel.step import Step, Tensors

__all__ = ["HigherStepper"]

_KNOWN = (torch.optim.SGD, torch.optim.Adam, torch.optim.Adagrad)  # its RMSprop is wrong, and warns of it


class HigherStepper:
    """Wraps `higher.get_diff_optim` around a twin of the recorded optimizer.

    Raises:
        TypeError: an optimizer or option that `higher` refuses or silently ignores (AdamW, NAdam, ``maximize``).
    """

    def __init__(self, kind: type[torch.optim.Optimizer], first: Step) -> None:
        if kind not in _KNOWN:
            raise TypeError(f"higher has no {kind.__name__}; it has {', '.join(one.__name__ for one in _KNOWN)}")
        if any(group.get("maximize", False) for group in first.groups.values()):
            raise TypeError("higher ignores maximize=True; use Truncated, or another backend")
        if any(group.get("decoupled_weight_decay", False) for group in first.groups.values()):
            raise TypeError("higher has no decoupled weight decay; use Truncated, or another backend")
        self.first = first
        self.names = list(first.parameters)
        leaves = {name: p.clone().requires_grad_() for name, p in first.parameters.items()}
        optimizer = kind([{**options(kind, first.groups[name]), "params": [leaves[name]]} for name in self.names])
        for name, leaf in leaves.items():
            optimizer.state[leaf] = {k: v.clone() if isinstance(v, Tensor) else v for k, v in _numbers(first, name)}
        self.optimizer = higher.get_diff_optim(optimizer, list(leaves.values()), track_higher_grads=True)

    def step(self, step: Step, parameters: Tensors, loss: Tensor) -> Tensors:
        """See `Stepper.step`."""
        check_schedule("higher", self.first, step)
        override = {"lr": [step.groups[name]["lr"] for name in self.names]}
        after = self.optimizer.step(loss, params=[parameters[name] for name in self.names], override=override)
        return dict(zip(self.names, after, strict=True))


def _numbers(first: Step, name: str) -> list[tuple[str, Any]]:
    """Its step counts are plain ints, where torch's became tensors."""
    return [(k, int(v) if k == "step" else v) for k, v in first.full_state[name].items()]
