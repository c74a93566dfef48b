"""What every score has, and how models are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from steelyard._support import _check
from steelyard._support._modules import class_logits, evaluating, inputs_of_last_linear
from steelyard.bilevel.batch import Batch
from steelyard.experiments.training.problem import Problem
from steelyard.experiments.training.trainer import OptimizerSettings, Training, train
from steelyard.selectors import Direction, direction_of

__all__ = ["CHUNK", "Term", "adam", "kept", "read", "read_over_run"]

CHUNK = 8192  # samples a forward pass


@dataclass(frozen=True)
class Term:
    """What every score has.

    Attributes:
        weight: lambda >= 0 of this score in the pool; 0 is as good as absent (and is not computed).
        keep: whether samples of "high" or of "low" score are worth more.
    """

    weight: float = 1.0
    keep: Literal["high", "low"] = "high"

    def __post_init__(self) -> None:
        _check.in_range("weight", self.weight, low=0.0)

    def figures(self, scores: Tensor) -> dict[str, float]:
        """Return what else is known of `scores` ``(n,)``, of this term, as numbers by name."""
        return {}

    def source(self) -> bytes:
        """Return what the scores depend on beyond the settings, the model, the seed and the training samples."""
        return b""


def kept(score: str) -> Literal["high", "low"]:
    """Return which samples of that score of `steelyard.selectors` are worth more, by its table of directions."""
    return "low" if direction_of(score) is Direction.HARD else "high"


def adam(steps: int, evaluate_every: int = 10) -> Training:
    """Return a short training by Adam on all samples at once, the default of every score."""
    return Training(steps=steps, evaluate_every=evaluate_every, optimizer=OptimizerSettings("adam", 1e-3))


@torch.no_grad()
def read(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return logits ``(b, classes)`` and the last `nn.Linear`'s inputs ``(b, features)``, in eval mode."""
    with evaluating(model), inputs_of_last_linear(model) as hidden:
        logits = class_logits(model(batch.inputs))
    return logits, hidden[0]


def read_over_run(problem: Problem, training: Training, of: Callable[[Tensor], Tensor]) -> Tensor:
    """Train once; return what `of` makes of the training samples' logits at every evaluated step ``(reads, n, ...)``.

    All samples are read at the same parameters, in eval mode.
    """
    seen: list[Tensor] = []

    def observe(step: int, model: nn.Module, extra: Mapping[str, float]) -> None:
        seen.append(torch.cat([of(read(model, part)[0]) for part in problem.splits.train.chunks(CHUNK)]))

    train(problem, training, observe)
    return torch.stack(seen)
