"""Convex combinations of samples: their inputs, and their labels as shares of classes.

Labels that are mixed are shares ``(n, classes)``: train by `class_losses.soft_cross_entropy`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from steelyard.bilevel.batch import Batch
from steelyard.experiments.errors import DataError
from steelyard.experiments.training.problem import Problem
from steelyard.experiments.training.seeds import derived, generator

__all__ = ["MixBatch", "MixHalves", "Partners", "check_mixing", "mixed"]

_SHARES, _ORDER, _PARTNERS = range(3)  # what a seed is for


def mixed(first: Batch, second: Batch, share: Float[Tensor, " n"], classes: int) -> Batch:
    """Return ``share first + (1 - share) second``, inputs and one-hot labels; all else is that of `first`.

    Example:
        >>> one, two = Batch.of([[1.0]], torch.tensor([0])), Batch.of([[3.0]], torch.tensor([1]))
        >>> both = mixed(one, two, torch.tensor([0.25]), classes=2)
        >>> both.inputs.tolist(), both.targets.tolist()
        ([[2.5]], [[0.25, 0.75]])
    """

    def combined(one: Tensor, two: Tensor) -> Tensor:
        part = share.to(one).reshape(-1, *[1] * (one.ndim - 1))
        return part * one + (1 - part) * two

    labels = (F.one_hot(batch.targets, classes).to(share) for batch in (first, second))
    return replace(first, inputs=combined(first.inputs, second.inputs), targets=combined(*labels))


def check_mixing(problem: Problem, name: str) -> None:
    """Raise ValueError if samples of `problem` cannot be mixed by the method `name`."""
    if problem.ranks.size > 1:
        raise ValueError(
            f"method {name!r} mixes samples that are on one process, and there are {problem.ranks.size}; carry the "
            "recipe out in one process"
        )
    if not problem.splits.train.inputs.is_floating_point():
        dtype = problem.splits.train.inputs.dtype
        raise ValueError(f"method {name!r} mixes inputs that are numbers, got {dtype}; convert them to float32")


def _shares(alpha: float, count: int, seed: int, step: int) -> Tensor:
    """Return `count` draws of Beta(alpha, alpha); ones for an alpha of 0, whose limit mixes nothing."""
    if not alpha:
        return torch.ones(count)
    draws = np.random.default_rng(derived(seed, _SHARES, step)).beta(alpha, alpha, count)
    return torch.from_numpy(draws).float()


class MixBatch:
    """Mixes each batch with itself in another order, all of it with one share: mixup's step.

    A `trainer.Perturb` whose draws depend on the seed and the number of the step alone, so that a run may be resumed.

    Args:
        alpha: of the Beta(alpha, alpha) that the share is drawn from, >= 0.
        classes: how many.
        seed: of the draws.
    """

    def __init__(self, alpha: float, classes: int, seed: int) -> None:
        self.alpha, self.classes, self.seed = alpha, classes, seed

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> Batch:
        """Return the batch that `step`, counted from 0, is taken on."""
        order = torch.randperm(len(batch), generator=generator(self.seed, _ORDER, step))
        share = _shares(self.alpha, 1, self.seed, step).expand(len(batch)).to(batch.targets.device)
        return mixed(batch, batch.take(order), share, self.classes)


class MixHalves:
    """Mixes the first half of each batch with the second, each sample with a share of its own.

    A `trainer.Perturb` for the batches of `Partners`; arguments as of `MixBatch`.
    """

    def __init__(self, alpha: float, classes: int, seed: int) -> None:
        self.alpha, self.classes, self.seed = alpha, classes, seed

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> Batch:
        """Return the batch that `step`, counted from 0, is taken on: half as many samples."""
        half = len(batch) // 2
        positions = torch.arange(len(batch))
        share = _shares(self.alpha, half, self.seed, step).to(batch.targets.device)
        return mixed(batch.take(positions[:half]), batch.take(positions[half:]), share, self.classes)


class Partners:
    """Positions of samples with, behind them, those of a partner for each: LISA's selection.

    A partner is drawn evenly from all training samples with the same label and another environment ("intra-label"), or
    with the same environment and another label ("intra-domain"). A sample that has none is its own.

    Args:
        data: the training samples, with environments.
        intra_label: the probability that the partners of a batch are of the first kind.
        seed: of the draws.

    Raises:
        DataError: a kind that would be drawn has no pair in the data.
    """

    def __init__(self, data: Batch, intra_label: float, seed: int) -> None:
        if data.environment is None:
            raise DataError("this method needs environment ids on the training samples, and there are none")
        self.intra_label, self.seed = intra_label, seed
        labels, environments = data.targets.cpu(), data.environment.cpu()
        cells, self.cell = torch.unique(torch.stack([labels, environments]), dim=1, return_inverse=True)
        same = cells[:, :, None] == cells[:, None]  # [what, cell, cell]: whether two cells agree in it
        self.pools = [
            [agree[cell][self.cell].nonzero().flatten() for cell in range(cells.shape[1])]
            for agree in (same[0] & ~same[1], same[1] & ~same[0])
        ]
        for pools, wanted, what in (
            (self.pools[0], intra_label > 0, "class is in two environments: take intra_label = 0, or mixup"),
            (self.pools[1], intra_label < 1, "environment has two classes: take intra_label = 1, or mixup"),
        ):
            if wanted and not any(len(pool) for pool in pools):
                raise DataError(f"no {what}, which mixes any two samples")

    def of(self, rows: Int[Tensor, " b"], step: int) -> Int[Tensor, " b"]:
        """Return a partner's position for each of `rows`, as drawn for `step`, counted from 0."""
        draws = generator(self.seed, _PARTNERS, step)
        kind = 0 if float(torch.rand((), generator=draws)) < self.intra_label else 1
        partners, cells = rows.cpu().clone(), self.cell[rows.cpu()]
        for cell in cells.unique().tolist():
            members, pool = cells == cell, self.pools[kind][cell]
            if len(pool):
                partners[members] = pool[torch.randint(len(pool), (int(members.sum()),), generator=draws)]
        return partners.to(rows.device)

    def paired(self, rows: Iterator[Int[Tensor, " b"]]) -> Iterator[Int[Tensor, " pairs"]]:
        """Yield each of `rows` followed by its partners."""
        for step, positions in enumerate(rows):
            yield torch.cat([positions, self.of(positions, step)])
