"""What is checked once, before the first step of `Maple.fit`: all is of its kind, fits, and is alike on all ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from steelyard._support import _check
from steelyard._support._agreement import optimizer_settings, sample_kinds
from steelyard._support._nested import named_tensors
from steelyard.bilevel import Batch, Streamed
from steelyard.checkpoint import Journal
from steelyard.reweight.inner import InnerRun
from steelyard.reweight.outer_state import OuterState

__all__ = ["admit", "agree_on_state", "check_no_graph"]


def admit(
    inner: InnerRun,
    folds: int,
    train: Batch,
    validation: Batch | None,
    journal: Journal | None,
    facts: Callable[[], Mapping[str, object]],
) -> None:
    """Raise unless `Maple.fit` can begin; the arguments are its own.

    Args:
        inner, folds, train, validation, journal: of the run.
        facts: returns what all ranks must have in common, beside their samples.

    Raises:
        TypeError, ValueError: see `Maple`.
        RankError: the ranks would not do the same, or hold samples of other types.
    """
    ranks = inner.ranks
    ranks.together(lambda: _check_kinds(train, validation, journal))
    if ranks.size > 1:
        kinds = {**sample_kinds("train", train), **sample_kinds("validation", validation)}
        ranks.agree("Maple.fit", {**facts(), **kinds, "train's device": train.device.type})
    if journal is not None and journal.ranks.size != ranks.size:
        raise ValueError(f"journal is kept by {journal.ranks.size} processes, not {ranks.size}: Journal(..., ranks=)")
    if folds > max(1, count := ranks.count(len(train))):
        raise ValueError(f"folds is {folds}, but train has only {count} samples; lower folds")
    if folds > 1 and validation is not None:
        raise ValueError("folds > 1 judges the training samples: leave out validation, or use folds=1")
    if validation is not None:
        ranks.together(lambda: _try_validation(inner, train, validation))


def agree_on_state(state: OuterState) -> None:
    """Raise RankError where the ranks' states are not of one run."""
    if state.ranks.size == 1:
        return
    made = [optimizer_settings(f"the optimizer of {name}", one) for name, one in state.optimizers.items()]
    settings = {name: value for one in made for name, value in one.items()}
    state.ranks.agree("the outer state", {"step": state.step, **settings})


def check_no_graph(name: str, data: Batch | None) -> None:
    """Raise ValueError where inputs require gradients: the model is trained on them many times."""
    if data is None or isinstance(data, Streamed):
        return
    for what, one in named_tensors(f"{name}.inputs", data.inputs):
        if one.requires_grad:
            raise ValueError(
                f"{what} require gradients (features of another model?), and are used in many steps: give x.detach(), "
                "or make what computes them a part of the model"
            )


def _check_kinds(train: Batch, validation: Batch | None, journal: Journal | None) -> None:
    for name, data, optional in (("train", train, ()), ("validation", validation, (type(None),))):
        _check.instance(name, data, (Batch, *optional), "a Batch, as Batch.of(inputs, targets) makes it")
        check_no_graph(name, data)
    _check.instance("journal", journal, (Journal, type(None)), 'a Journal, such as Journal("run.safetensors")')


def _try_validation(inner: InnerRun, train: Batch, validation: Batch) -> None:
    """Raise ValueError if `validation` is of another kind than `train`, one that model or loss cannot take.

    (They may: a convolution takes images of other sizes.)
    """
    unlike = _unlike(train, validation)
    if not unlike or not len(validation):
        return
    model = inner.initial(validation.device).eval()
    device = validation.device.type
    autocast = inner.autocast if isinstance(inner.autocast, torch.dtype) else None
    try:
        with torch.no_grad(), torch.autocast(device, dtype=autocast, enabled=autocast is not None):
            inner.objective.sample_losses(model, validation.take(torch.tensor([0])))
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"validation does not fit the model and the loss: it has {' and '.join(unlike)} ({said})"
        ) from error


def _unlike(train: Batch, validation: Batch) -> list[str]:
    """Return in words where the shape of a sample, or a dtype, differs."""
    found = []
    own, others = (
        {**dict(named_tensors("inputs", data.inputs)), "targets": data.targets} for data in (train, validation)
    )
    for name in dict.fromkeys([*own, *others]):
        here, there = _of_one(own.get(name)), _of_one(others.get(name))
        if here != there:
            found.append(f"{name} of {there}, where train has {here}")
    return found


def _of_one(values: Tensor | None) -> str:
    return "none" if values is None else f"{values.dtype} ({', '.join(['n', *map(str, values.shape[1:])])})"
