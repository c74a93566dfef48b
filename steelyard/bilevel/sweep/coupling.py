"""Does a sample's loss depend on which other samples are beside it?

BatchNorm says so by writing to a buffer, and the recorder sees that. What it cannot see (a home-made norm, centring
within a domain) is found by effect: the same samples in other company have other losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from steelyard.bilevel.alike import alike
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.step import Step, Tensors
from steelyard.bilevel.sweep.beside import losses_beside
from steelyard.bilevel.sweep.question import Question
from steelyard.bilevel.trajectory import Trajectory

__all__ = ["changes_with_company", "mixes_samples", "moves_recorded"]


def mixes_samples(
    run: Trajectory,
    step: Step,
    at: Tensors,
    batch: Batch,
    generator: torch.Generator,
    size: int | None = None,
    smaller: int | None = None,
    beside: bool = False,
) -> bool:
    """Whether the losses of `batch` change with the grouping: as it stands, and in a random order in smaller groups.

    Random operators give constants meanwhile (dropout keeps all), for a mask depends on the grouping by itself.

    Args:
        run, step, at: the step, replayed at `at`.
        batch: the samples.
        generator: draws the order.
        size: of the groups as it stands, the largest that fits into memory; None: all at once.
        smaller: of the others; None: half of that.
        beside: as `Question` has it.
    """
    count = len(batch)
    if count < 2:
        return False
    size = max(2, min(count, size or count))  # (of one at a time nothing is to be seen)
    order = torch.randperm(count, generator=generator)
    smaller = max(1, min(smaller or size, size // 2))
    try:
        question = Question(run, step, at, {}, batch, beside=beside)
        together = _losses(question, torch.arange(count).split(size))
        apart = _losses(question, [part[part.argsort()] for part in order.split(smaller)])
    except _UnableError:
        return True
    return not _alike(step, together, apart)


def moves_recorded(run: Trajectory, step: Step, others: Batch) -> bool:
    """Whether the recorded samples have other losses where `others` are evaluated beside them (`sweep.beside`)."""

    def beside(module: nn.Module) -> Tensor:
        return losses_beside(run.weighted, module, step.batch, others)

    try:
        with torch.no_grad(), _Constants() if step.findings.stochastic else nullcontext():
            alone = run.sample_losses(step, step.parameters, step.batch)
            found = run.replay(step, step.parameters, beside)
    except Exception:  # noqa: BLE001 (whatever a model says that takes only the number of samples it was trained on)
        return True
    return not _alike(step, found[: len(alone)], alone)


def changes_with_company(losses: Callable[[Batch], Tensor], batch: Batch) -> bool:
    """Whether the losses of `batch`, evaluated together, are others than those of its two halves.

    Random operators give constants meanwhile.

    Args:
        losses: from a batch to its samples' losses; called on parts of `batch` of one sample and more.
        batch: the samples; of fewer than two there is nothing to see.
    """
    count = len(batch)
    if count < 2:
        return False
    half = torch.arange(count).split((count + 1) // 2)
    with torch.no_grad(), _Constants():
        together, apart = losses(batch), torch.cat([losses(batch.take(part)) for part in half])
    return not alike([apart], [together], together.dtype in (torch.bfloat16, torch.float16))


def _alike(step: Step, together: Tensor, apart: Tensor) -> bool:
    """Whether losses are the same up to rounding."""
    return alike([apart], [together], step.conditions.autocast is not None)


def _losses(question: Question, groups: Sequence[Tensor]) -> Tensor:
    """Return the losses in the order of the question's batch, evaluated group by group."""
    found, step = [], question.step
    for group in groups:
        samples = question.batch.take(group)  # (an error of the data is one of the data)
        try:
            with torch.no_grad(), _Constants() if step.findings.stochastic else nullcontext():
                found.append(replace(question, batch=samples).losses(question.at))
        except Exception as error:  # whatever a model says that takes only the number of samples it was trained on
            raise _UnableError from error
    joined = torch.cat(found)
    return joined[torch.cat(list(groups)).argsort().to(joined.device)]


class _UnableError(Exception):
    """The model does not take the group."""


class _Constants(TorchDispatchMode):
    """Random operators give the middle of what they draw."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return found
        if func is torch.ops.aten.native_dropout.default:
            return args[0].clone(), torch.ones_like(found[1])
        for one in _tensors(found):
            if one.is_floating_point():
                one.fill_(1.0 if "bernoulli" in func.name() else 0.5)
        return found


def _tensors(values: Any) -> Iterator[Tensor]:
    for one in values if isinstance(values, (list, tuple)) else (values,):
        if isinstance(one, Tensor):
            yield one
