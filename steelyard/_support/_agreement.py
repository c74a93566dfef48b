"""What the processes of one computation must have in common, as text to compare, and what is said if they do not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from steelyard._support._nested import named_tensors

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["disagreement", "model_kinds", "optimizer_settings", "sample_kinds"]

_NAMED = 3  # differences said in full
_LONG = 100  # characters of a value


def disagreement(everywhere: Sequence[Mapping[str, str]]) -> str:
    """Return in words what differs between the facts that the ranks have, and who has what; empty if nothing does.

    Example:
        >>> disagreement([{"steps": "8"}, {"steps": "9"}, {"steps": "8"}])
        'steps is 8 on ranks 0 and 2, 9 on rank 1'
    """
    names = list(dict.fromkeys(name for facts in everywhere for name in facts))
    found = []
    for name in names:
        holders: dict[str, list[int]] = {}
        for rank, facts in enumerate(everywhere):
            holders.setdefault(facts.get(name, "missing"), []).append(rank)
        if len(holders) > 1:
            found.append(f"{name} is " + ", ".join(f"{_cut(value)} on {_ranks(who)}" for value, who in holders.items()))
    more = [f"{len(found) - _NAMED} more differ"] if len(found) > _NAMED else []
    return "; ".join([*found[:_NAMED], *more])


def optimizer_settings(name: str, optimizer: Optimizer) -> dict[str, str]:
    """Return the class of an optimizer and the settings of its groups."""
    found = {name: type(optimizer).__name__}
    for number, group in enumerate(optimizer.param_groups):
        place = name if len(optimizer.param_groups) == 1 else f"{name}.param_groups[{number}]"
        found |= {f"{place}.{key}": _value(value) for key, value in group.items() if key != "params"}
        found[f"{place}.params"] = str(len(group["params"]))
    return found


def sample_kinds(name: str, samples: DataclassInstance | None) -> dict[str, str]:
    """Return what kinds of fields `samples` (a `Batch`, or None) have, whatever their number."""
    if samples is None:
        return {name: "None"}
    held = {field.name: getattr(samples, field.name) for field in fields(samples)}
    found = {f"{name}.{field}": "None" for field, value in held.items() if value is None}
    nested = {field: value for field, value in held.items() if isinstance(value, (Tensor, dict, tuple))}
    rows = [leaf for field, value in nested.items() for leaf in named_tensors(f"{name}.{field}", value)]
    return found | {place: _kind(value) for place, value in rows if value.ndim}


def model_kinds(model: nn.Module) -> dict[str, str]:
    """Return the parameters' names, types and shapes, and which are trained."""
    return {
        f"parameter {name!r}": f"{p.dtype} {tuple(p.shape)}{'' if p.requires_grad else ', not trained'}"
        for name, p in model.named_parameters()
    }


def _kind(value: Tensor) -> str:
    return f"{value.dtype} ({', '.join(('n', *map(str, value.shape[1:])))})"


def _value(value: Any) -> str:
    return repr(value.tolist() if isinstance(value, Tensor) else value)


def _cut(value: str) -> str:
    return value if len(value) <= _LONG else f"{value[:_LONG]}..."


def _ranks(numbers: Iterable[int]) -> str:
    first, *others = numbers
    if not others:
        return f"rank {first}"
    if len(others) > 4:
        return f"ranks {first}, {others[0]}, {others[1]} and {len(others) - 2} others"
    return f"ranks {', '.join(map(str, [first, *others[:-1]]))} and {others[-1]}"
