"""The samples that an online method judges by, a batch of them at every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from steelyard._support import _check
from steelyard.bilevel import Batch

__all__ = ["Balanced", "CleanSamples"]


@dataclass(frozen=True)
class Balanced:
    """Batches in which every class (or group, or environment) has the same number of samples.

    For data that is right but unbalanced: the training samples themselves will do. A class with few samples has them
    more than once.

    Attributes:
        samples: where they are drawn from; a `Streamed` too.
        by: "targets" (one class id a sample), "group" or "environment".
        each: samples of each class at a step.

    Raises:
        ValueError: no samples, or none of the ids asked for.

    Example:
        >>> data = Batch.of(torch.randn(6, 2), torch.tensor([0, 0, 0, 0, 0, 1]))
        >>> batch = Balanced(data, each=2).draw(torch.Generator().manual_seed(0))
        >>> batch.targets.tolist()
        [0, 0, 1, 1]
    """

    samples: Batch
    by: Literal["targets", "group", "environment"] = "targets"
    each: int = 16

    def __post_init__(self) -> None:
        _check.instance("samples", self.samples, Batch, "a Batch, as Batch.of(inputs, targets) makes it")
        _check.choice("by", self.by, ("targets", "group", "environment"))
        _check.store(self, each=_check.integer("each", self.each, low=1))
        ids = getattr(self.samples, self.by)
        if ids is None:
            raise ValueError(f"samples have no {self.by}: give Batch.of(..., {self.by}=ids), or balance by targets")
        if not len(ids):
            raise ValueError("samples are empty: a balanced batch needs some of each class")
        if ids.ndim != 1 or ids.is_floating_point():
            raise ValueError(
                f"by={self.by!r} needs one id a sample, got {ids.dtype} {tuple(ids.shape)}; balance by group instead"
            )

    def draw(self, generator: torch.Generator) -> Batch:
        """Return `each` samples of every class, drawn with replacement, class by class in order of its id."""
        ids = getattr(self.samples, self.by)
        places = [(ids == one).nonzero().flatten() for one in ids.unique()]
        drawn = [some[_integers(len(some), self.each, generator).to(some.device)] for some in places]
        return self.samples.take(torch.cat(drawn))


class CleanSamples:
    """Draws the clean batch of each step, from a generator of its own.

    Args:
        samples: a `Batch`, of which all or `size` are drawn (without replacement), or `Balanced` samples.
        size: see above.
        seed: of the generator.
    """

    def __init__(self, samples: Batch | Balanced, size: int | None, seed: int) -> None:
        what = "a Batch of clean samples, or Balanced(samples)"
        self._balanced = samples if isinstance(samples, Balanced) else None
        self.samples = samples.samples if isinstance(samples, Balanced) else samples
        _check.instance("clean", self.samples, Batch, what)
        if not len(self.samples):
            raise ValueError("clean is empty: give samples with right labels, or Balanced(train)")
        if size is not None and self._balanced is not None:
            raise ValueError("clean_size is for a Batch; Balanced(samples, each=...) says how many of each class")
        self.size = None if size is None else _check.integer("clean_size", size, low=1, high=len(self.samples))
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self) -> Batch:
        """Return the clean batch of the next step."""
        if self._balanced is not None:
            return self._balanced.draw(self._generator)
        if self.size is None:
            return self.samples
        return self.samples.take(torch.randperm(len(self.samples), generator=self._generator)[: self.size])

    def state_dict(self) -> dict[str, Any]:
        """Return where the generator is."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._generator.set_state(state["generator"])


def _integers(below: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(below, (count,), generator=generator)
