"""How a model is called with the inputs of a batch, and what of the things that it returns are its outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from steelyard._support import _check
from steelyard._support._nested import Nested

__all__ = ["ModelCall", "Outputs", "call_model", "chosen", "outputs_to_choose"]

ModelCall: TypeAlias = Callable[[nn.Module, Nested], Any]
"""``(model, inputs) -> what the model returns``."""

Outputs: TypeAlias = str | int | Callable[[Any], Any] | None
"""A key or an attribute, a position, or a function of what the model returns; None: it returns one tensor."""


def call_model(model: nn.Module, inputs: Nested) -> Any:
    """Return ``model(x)`` for a tensor, ``model(*x)`` for a tuple, ``model(**x)`` for a dict.

    Example:
        >>> import torch
        >>> call_model(nn.Bilinear(2, 3, 1), (torch.ones(4, 2), torch.ones(4, 3))).shape
        torch.Size([4, 1])
    """
    if isinstance(inputs, Tensor):
        return model(inputs)
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def outputs_to_choose(name: str, outputs: Outputs) -> Outputs:
    """Return `outputs` if it is what `chosen` takes; TypeError otherwise."""
    if outputs is None or isinstance(outputs, str):
        return outputs
    if isinstance(outputs, int) and not isinstance(outputs, bool):
        return outputs
    return _check.function(name, outputs, "a key, an attribute or a position, such as 'logits', or a function")


def chosen(found: Any, outputs: Outputs) -> Any:
    """Return the outputs among what a model returned.

    Args:
        found: what the model returned.
        outputs: which of that; what a function returns is taken as it is.

    Raises:
        TypeError: `found` is not one tensor and `outputs` is None, or `outputs` names an entry that it has not.
    """
    if outputs is None:
        if isinstance(found, Tensor):
            return found
        raise TypeError(f"the model returned {_shown(found)}, no tensor: {_REMEDY}")
    if callable(outputs):
        return outputs(found)
    if isinstance(found, Tensor):  # of which a position is a row
        raise TypeError(f"outputs={outputs!r}, but the model returned one tensor: leave out outputs")
    try:
        taken = found[outputs] if isinstance(outputs, int) or isinstance(found, Mapping) else getattr(found, outputs)
    except (KeyError, IndexError, AttributeError, TypeError):
        raise TypeError(
            f"outputs={outputs!r}, but the model returned {_shown(found)}, which has no such entry: {_REMEDY}"
        ) from None
    if not isinstance(taken, Tensor):
        raise TypeError(f"outputs={outputs!r} is {_shown(taken)}, no tensor: {_REMEDY}")
    return taken


_REMEDY = (
    "say which are its outputs, WeightedLoss(loss, outputs='logits') for a key or an attribute, outputs=0 for a "
    "position, or outputs=a function of what the model returns"
)


def _shown(found: Any) -> str:
    """Return what a model returned, with the names of its entries."""
    kind = type(found).__name__
    if isinstance(found, Mapping):
        return f"a {kind} of {', '.join(map(repr, found))}"
    if is_dataclass(found):
        return f"a {kind} of {', '.join(repr(field.name) for field in fields(found))}"
    if isinstance(found, (tuple, list)):
        return f"a {kind} of {len(found)}"
    return _check.shown(found)
