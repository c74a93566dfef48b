"""A case of the zoo: a small model, its data and its per-sample loss."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "CLASSES",
    "CROSS_ENTROPY",
    "FEATURES",
    "OTHERS",
    "SAMPLES",
    "Case",
    "Shell",
    "classes",
    "normal",
    "seed_of",
    "seeded",
]

SAMPLES, OTHERS, FEATURES, CLASSES = 5, 3, 3, 3
CROSS_ENTROPY = partial(F.cross_entropy, reduction="none")

Draw = Callable[[torch.Generator, int], Tensor]
"""``(generator, rows) -> (rows, ...)``."""


def normal(*shape: int) -> Draw:
    return lambda generator, rows: torch.randn(rows, *shape, generator=generator)


def classes(count: int = CLASSES, *shape: int) -> Draw:
    return lambda generator, rows: torch.randint(0, count, (rows, *shape), generator=generator)


_NORMAL, _CLASSES = normal(FEATURES), classes()


@dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes:
        name: unique.
        covers: the class of `torch.nn` or the function of `torch.nn.functional` that it is there for.
        make: the model, drawn from torch's global generator.
        loss: ``(outputs, targets) -> (batch,)``.
        inputs: of the samples.
        targets: of the samples.
        predicts: the outer loss reads the model's outputs, not its parameters only. (Not where `backward` of the model
            is not the derivative of its value: the outer loss itself would have another gradient than its value.)
        field: what `backward` gives is not the derivative of the value, or autograd's second derivative leaves out a
            part of its derivative: right is what retraining gives, nothing else.
        optimizers: those that can train it.
    """

    name: str
    covers: str
    make: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor] = CROSS_ENTROPY
    inputs: Draw = _NORMAL
    targets: Draw = _CLASSES
    predicts: bool = True
    field: bool = False
    optimizers: tuple[str, ...] = ("sgd", "adam")

    def draw(self, which: str, dtype: torch.dtype, rows: int = SAMPLES) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of the samples `which` names, always the same."""
        generator = torch.Generator().manual_seed(seed_of(self.name, which))
        return cast(self.inputs(generator, rows), dtype), cast(self.targets(generator, rows), dtype)

    def data(self, dtype: torch.dtype, others: int = 0) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of the samples that are trained on, and of `others` that are not."""
        inputs, targets = self.draw("inner", dtype)
        if not others:
            return inputs, targets
        more = self.draw("others", dtype, others)
        return torch.cat([inputs, more[0]]), torch.cat([targets, more[1]])

    def build(self, dtype: torch.dtype) -> nn.Module:
        """Return the model, always the same, in training mode."""
        with seeded(self.name, "model"):
            return self.make()._apply(partial(cast, dtype=dtype))


class Shell(nn.Module):
    """Linear front -> `module` -> linear head: parameters before and after the module under test."""

    def __init__(
        self,
        module: nn.Module,
        shape: tuple[int, ...],
        call: Callable[[Any, Tensor], Tensor] | None = None,
        outputs: int = CLASSES,
    ) -> None:
        super().__init__()
        self.front = nn.Linear(FEATURES, math.prod(shape))
        self.module, self.shape, self.call = module, shape, call
        with torch.no_grad():  # a lazy module gets its parameters here
            width = self.middle(torch.randn(SAMPLES, FEATURES)).shape[1]
        self.head = nn.Linear(width, outputs)

    def middle(self, x: Tensor) -> Tensor:
        h = self.front(x).view(-1, *self.shape)
        return (self.module(h) if self.call is None else self.call(self.module, h)).reshape(len(x), -1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(x))


def cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return floating-point and complex values in the precision of `dtype`, all others as they are."""
    if value.is_complex():
        return value.to(torch.complex128 if dtype == torch.float64 else torch.complex64)
    return value.to(dtype) if value.is_floating_point() else value


@contextmanager
def seeded(*names: str) -> Iterator[None]:
    """Draw from a stream of its own. (Of the CPU's generator only: `torch.manual_seed` takes longer than a step.)"""
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(seed_of(*names))
    try:
        yield
    finally:
        generator.set_state(before)


def seed_of(*names: str) -> int:
    return zlib.crc32(" ".join(names).encode())
