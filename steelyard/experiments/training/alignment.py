"""How far apart the features of two sets of samples are: by kernel means (MMD), or by two moments (CORAL)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from steelyard import reweight
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.objective import SampleLoss
from steelyard.experiments.training.group_labels import Field

__all__ = ["Alignment", "Distance", "mean_and_covariance_distance", "mmd"]

Distance = Callable[[Tensor, Tensor], Tensor]
"""Features ``(n, d)`` and ``(m, d)`` to a number >= 0 ``()``."""

_WIDTHS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)


def mmd(one: Float[Tensor, "n d"], two: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    """Return the squared maximum mean discrepancy of two samples (Gretton et al. 2012, equation 5: biased, >= 0).

    The kernel is ``sum_g exp(-g |x - y|^2)`` over seven widths g from 0.001 to 1000, as in DomainBed and SubpopBench.
    Time and memory grow with the square of the number of samples.

    Example:
        >>> mmd(torch.zeros(2, 1), torch.zeros(3, 1)).item()
        0.0
    """
    return _kernel(one, one).mean() + _kernel(two, two).mean() - 2 * _kernel(one, two).mean()


def _kernel(one: Tensor, two: Tensor) -> Tensor:
    squares = one.square().sum(1)[:, None] + two.square().sum(1) - 2 * one @ two.T
    squares = squares.clamp(min=0)  # rounding makes a distance of 0 negative
    return torch.stack([torch.exp(-g * squares) for g in _WIDTHS]).sum(0)


def mean_and_covariance_distance(one: Float[Tensor, "n d"], two: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    """Return the mean squared difference of the means plus that of the entries of the covariances.

    The second term is four times CORAL's loss (Sun and Saenko 2016, equation 1); the first, and the factor, are
    DomainBed's and SubpopBench's. Needs two samples of each.

    Example:
        >>> mean_and_covariance_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [3.0]])).item()
        1.0
    """
    means = (one.mean(0) - two.mean(0)).square().mean()
    return means + (_covariance(one) - _covariance(two)).square().mean()


def _covariance(values: Tensor) -> Tensor:
    centred = values - values.mean(0)
    return centred.T @ centred / (len(values) - 1)


class Alignment(reweight.Risk):
    """The mean distance of the features of a batch over pairs of its environments, or of its groups of one class.

    Groups of different classes are not compared: what tells the classes apart would be aligned, too. A batch without
    a pair has the penalty 0.

    Args:
        distance: of the features of two sets.
        by: "environment" or "group".
        features: the features of the newest forward pass, asked for after it; None: the outputs themselves.
        least: a set with fewer samples in the batch is left out.
    """

    def __init__(
        self, distance: Distance, by: Field, features: Callable[[], Tensor | None] | None = None, least: int = 1
    ) -> None:
        self.distance, self.by, self.features, self.least = distance, by, features, least

    def __call__(self, outputs: Shaped[Tensor, "n *outputs"], batch: Batch, loss: SampleLoss) -> Float[Tensor, ""]:
        """Return the mean distance, with a graph to the outputs or the features.

        Raises:
            ValueError: no ids of `by`, or features of another batch.
        """
        found = outputs if self.features is None else self.features()
        if found is None or len(found) != len(batch):
            raise ValueError("this risk needs the model's forward pass on this very batch before it")
        flat = found.flatten(1)
        distances = [self.distance(flat[one], flat[two]) for one, two in self.pairs(batch)]
        return torch.stack(distances).mean() if distances else outputs.new_zeros(())

    def pairs(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield two masks ``(n,)`` for each pair of environments, or of groups of one class."""
        ids = batch.environment if self.by == "environment" else batch.group
        if ids is None:
            raise ValueError(f"this risk needs {self.by} ids, but batch.{self.by} is None")
        classes = [torch.ones_like(ids, dtype=torch.bool)]
        if self.by == "group":
            classes = [batch.targets == label for label in batch.targets.unique()]
        for members in classes:
            sets = [members & (ids == one) for one in ids[members].unique()]
            yield from combinations([one for one in sets if int(one.sum()) >= self.least], 2)
