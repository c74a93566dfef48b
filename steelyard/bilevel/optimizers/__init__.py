"""Adjoints of optimizers' updates: in closed form, one family a file, and by differences for any elementwise one.

`pullback_for(optimizer)` finds the adjoint of an optimizer; `SUPPORTED` lists those in closed form, `COVERED` says how
each optimizer that the tests know is answered.
"""

from __future__ import annotations

import torch

from steelyard.bilevel.optimizers._base import ParameterUpdate, Pullback, Pulled
from steelyard.bilevel.optimizers.adadelta import AdadeltaPullback
from steelyard.bilevel.optimizers.adagrad import AdagradPullback
from steelyard.bilevel.optimizers.adam import AdamPullback
from steelyard.bilevel.optimizers.adamax import AdamaxPullback
from steelyard.bilevel.optimizers.elementwise import ElementwisePullback
from steelyard.bilevel.optimizers.nadam import NAdamPullback
from steelyard.bilevel.optimizers.radam import RAdamPullback
from steelyard.bilevel.optimizers.rmsprop import RMSpropPullback
from steelyard.bilevel.optimizers.sgd import SGDPullback

__all__ = ["COVERED", "SUPPORTED", "ElementwisePullback", "ParameterUpdate", "Pullback", "Pulled", "pullback_for"]

SUPPORTED: dict[type[torch.optim.Optimizer], Pullback] = {
    torch.optim.SGD: SGDPullback(),
    torch.optim.Adam: AdamPullback(),
    torch.optim.AdamW: AdamPullback(),
    torch.optim.NAdam: NAdamPullback(),
    torch.optim.RAdam: RAdamPullback(),
    torch.optim.Adamax: AdamaxPullback(),
    torch.optim.RMSprop: RMSpropPullback(),
    torch.optim.Adagrad: AdagradPullback(),
    torch.optim.Adadelta: AdadeltaPullback(),
}


COVERED: dict[str, tuple[str, ...]] = {
    "in closed form": ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta"),
    "by differences of its own step, found to be elementwise": (
        "ASGD",
        "Rprop",
        "Lion",
        "Adan",
        "Signum",
        "a subclass of a torch optimizer",
        "your own class",
    ),
    "refused before training, with what gave it away": (
        "LBFGS",
        "Muon",
        "Adafactor",
        "SparseAdam",
        "LARS",
        "LAMB",
        "Shampoo",
        "SAM",
        "Lookahead",
    ),
}
"""How optimizers are differentiated, or that they are refused by name: every entry has a test."""


def pullback_for(optimizer: torch.optim.Optimizer) -> Pullback:
    """Return the adjoint for `optimizer`, its hyperparameters checked.

    A class without a closed form, a subclass too (it may update in another way), is answered by differences of its own
    step if that is elementwise.

    Raises:
        TypeError: as `ElementwisePullback`.
        ValueError: ``eps=0`` in a group: at a zero gradient the update itself is 0/0, and has no derivative.
    """
    for number, group in enumerate(optimizer.param_groups):
        eps = group.get("eps", 1.0)
        if isinstance(eps, (int, float)) and eps <= 0:
            raise ValueError(
                f"eps of optimizer group {number} is {eps}: a parameter whose gradients are all zero is then "
                "updated by 0/0, and the update has no derivative; use eps > 0 (torch's default is 1e-8)"
            )
    found = SUPPORTED.get(type(optimizer))
    return ElementwisePullback(optimizer) if found is None else found
