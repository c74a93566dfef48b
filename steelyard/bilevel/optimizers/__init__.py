"""Closed-form adjoints of the updates of `torch.optim`, one family a file.

`pullback_for(optimizer)` finds the adjoint of an optimizer; `SUPPORTED` lists those that have one.
"""

from __future__ import annotations

import torch

from steelyard.bilevel.optimizers._base import ParameterUpdate, Pullback, Pulled
from steelyard.bilevel.optimizers.adagrad import AdagradPullback
from steelyard.bilevel.optimizers.adam import AdamPullback
from steelyard.bilevel.optimizers.nadam import NAdamPullback
from steelyard.bilevel.optimizers.rmsprop import RMSpropPullback
from steelyard.bilevel.optimizers.sgd import SGDPullback

__all__ = ["SUPPORTED", "ParameterUpdate", "Pullback", "Pulled", "pullback_for", "pullback_of"]

SUPPORTED: dict[type[torch.optim.Optimizer], Pullback] = {
    torch.optim.SGD: SGDPullback(),
    torch.optim.Adam: AdamPullback(),
    torch.optim.AdamW: AdamPullback(),
    torch.optim.NAdam: NAdamPullback(),
    torch.optim.RMSprop: RMSpropPullback(),
    torch.optim.Adagrad: AdagradPullback(),
}


def pullback_of(kind: type[torch.optim.Optimizer]) -> Pullback:
    """Return the adjoint for an optimizer class.

    Raises:
        TypeError: none is known. A subclass counts as unknown, since it may update in another way.
    """
    if kind not in SUPPORTED:
        known = ", ".join(sorted(one.__name__ for one in SUPPORTED))
        raise TypeError(f"no closed-form pull-back for the optimizer {kind.__name__}; those that have one: {known}")
    return SUPPORTED[kind]


def pullback_for(optimizer: torch.optim.Optimizer) -> Pullback:
    """Return the adjoint for `optimizer`, its hyperparameters checked.

    Raises:
        TypeError: as `pullback_of`.
        ValueError: ``eps=0`` in a group: at a zero gradient the update itself is 0/0, and has no derivative.
    """
    pullback = pullback_of(type(optimizer))
    for number, group in enumerate(optimizer.param_groups):
        if group.get("eps", 1.0) <= 0:
            raise ValueError(
                f"eps of optimizer group {number} is {group['eps']}: a parameter whose gradients are all zero is then "
                "updated by 0/0, and the update has no derivative; use eps > 0 (torch's default is 1e-8)"
            )
    return pullback
