"""Torch's forward mode, without the warning that torch's own rules raise where it is first used.

The rules of a few operators are compiled by `torch.jit.script` when the first dual tensor is made. Torch deprecated
that function, and warns of it as though the caller had asked for it: from 2.14 on by a FutureWarning, which users see.
No one but torch can act on it.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

__all__ = ["dual_level", "jvp"]


def jvp(function: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
    """Return the value of `function` at `primals` and its derivative along `tangents`; `torch.func.jvp`."""
    _load_rules()
    return torch.func.jvp(function, primals, tangents)


def dual_level() -> forward_ad.dual_level:
    """Return a context in which dual tensors can be made; `torch.autograd.forward_ad.dual_level`."""
    _load_rules()
    return forward_ad.dual_level()


@functools.cache
def _load_rules() -> None:
    """Make a first dual tensor, which loads the rules, and let nothing be said of `torch.jit` meanwhile."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", r"`torch\.jit", category)
        torch.func.jvp(torch.neg, (torch.zeros(()),), (torch.zeros(()),))
