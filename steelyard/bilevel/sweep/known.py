"""What is noted of a model, a loss and shapes between calls: how often it was asked, and what checks have shown."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from steelyard._support._nested import named_tensors
from steelyard.bilevel.sweep.question import Question

__all__ = ["Known", "known_of"]


@dataclass
class Known:
    """What calls have shown of one (model, loss, shapes, mode).

    Attributes:
        calls: how many there were.
        barred: rungs that could not answer, or did not stand a check, and why.
        generator: of the random directions of checks.
        mixes: samples of the recorded batch were seen to couple.
        differ: entries of a direction of which the gradient is 0 were seen to matter.
        rough: float32 was seen to be too rough for what is asked.
        left_out: what a second derivative leaves out, as a check has put it; None: nothing.
        widths: bytes that a sample costs where activations are kept, and where they are not, by a probe.
    """

    calls: int = 0
    mixes: bool = False
    differ: bool = False
    rough: bool = False
    left_out: str | None = None
    barred: dict[str, str] = field(default_factory=dict)
    widths: dict[bool, int] = field(default_factory=dict)
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def due(self) -> bool:
        """Count a call; whether the dearer checks are due: at calls 1, 2, 4, ..., and every 256th, a clean slate."""
        self.calls += 1
        if self.calls % 256 == 0:
            self.barred.clear()
            return True
        return self.calls < 256 and self.calls & (self.calls - 1) == 0


_KNOWN: weakref.WeakKeyDictionary[Any, weakref.WeakKeyDictionary[nn.Module, dict[Any, Known]]] = (
    weakref.WeakKeyDictionary()
)
"""By objective and module. (A note of what was checked; without it everything is checked once more.)"""


def known_of(question: Question, kind: str) -> Known:
    """Return the note of what `question` asks of, for a `kind` of answer."""
    run, step, batch = question.run, question.step, question.batch
    read = [*named_tensors("inputs", batch.inputs), ("targets", batch.targets)]
    shapes = tuple((name, one.shape, one.dtype) for name, one in read)
    dtypes = tuple(value.dtype for value in question.at.values())
    key = (kind, shapes, step.conditions.modes, step.conditions.autocast, dtypes)
    try:
        by_module = _KNOWN.get(run.objective)
        if by_module is None:
            by_module = _KNOWN[run.objective] = weakref.WeakKeyDictionary()
    except TypeError:  # nothing that a note can be kept of
        return Known()
    noted = by_module.setdefault(run.module, {})
    if key not in noted:
        noted[key] = Known()
    return noted[key]
