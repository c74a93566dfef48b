"""What a risk is, the plain mean, and how risks combine.

A `Risk` is called as ``risk(outputs, batch, loss)`` and adds up: ``0.5 * MeanRisk() + Log(IRMv1())``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Real

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from steelyard._support import _check
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.objective import SampleLoss, check_rows

__all__ = ["Log", "MeanRisk", "Risk", "Sqrt", "WeightedSum", "per_sample"]


class Risk(ABC):
    """An outer objective: ``risk(outputs (n, ...), batch, loss) -> ()``, differentiable in the outputs.

    `loss` maps (outputs, targets) to per-sample losses ``(n,)``. Risks add and scale: ``a + 0.5 * b``.
    """

    @abstractmethod
    def __call__(self, outputs: Shaped[Tensor, "n *outputs"], batch: Batch, loss: SampleLoss) -> Float[Tensor, ""]:
        """Return the risk, a scalar with a graph to `outputs`."""

    def __add__(self, other: object) -> WeightedSum:
        if not isinstance(other, Risk):
            return NotImplemented
        return WeightedSum(_terms(self) + _terms(other))

    def __mul__(self, factor: object) -> WeightedSum:
        if isinstance(factor, bool) or not isinstance(factor, Real):  # of which NumPy's numbers are
            return NotImplemented
        factor = _check.in_range("factor", float(factor))
        return WeightedSum(tuple((factor * weight, risk) for weight, risk in _terms(self)))

    __rmul__ = __mul__


@dataclass(frozen=True)
class WeightedSum(Risk):
    """Sum of weight * risk; what ``a + 0.5 * b`` makes.

    Attributes:
        terms: pairs (weight, risk).
    """

    terms: tuple[tuple[float | int, Risk], ...]

    def __post_init__(self) -> None:
        checked = []
        for number, (weight, risk) in enumerate(self.terms):
            _check_risk(f"terms[{number}][1]", risk)
            checked.append((_check.in_range(f"terms[{number}][0]", weight), risk))
        _check.store(self, terms=tuple(checked))

    def __call__(self, outputs: Shaped[Tensor, "n *outputs"], batch: Batch, loss: SampleLoss) -> Float[Tensor, ""]:
        """Return the risk, a scalar with a graph to `outputs`."""
        return torch.stack([weight * risk(outputs, batch, loss) for weight, risk in self.terms]).sum()


@dataclass(frozen=True)
class MeanRisk(Risk):
    """Mean loss over the samples: the ERM term."""

    def __call__(self, outputs: Shaped[Tensor, "n *outputs"], batch: Batch, loss: SampleLoss) -> Float[Tensor, ""]:
        """Return the risk, a scalar with a graph to `outputs`."""
        return per_sample(outputs, batch, loss).mean()


@dataclass(frozen=True)
class Log(Risk):
    """log(risk + eps): the same minimiser, but the size of its gradient does not depend on the risk's scale.

    A penalty falls by orders of magnitude during an outer run; its logarithm keeps the steps comparable. Where a
    draw happens to bring it near 0 the gradient is very large (see `Sqrt`).

    Attributes:
        risk: a risk that stays positive (the unbiased `IRMv1` may not).
        eps: below this size of the risk the gradient fades, >= 0; 0 keeps it the same however small the risk.

    Raises (when called):
        ValueError: risk + eps is not positive.
    """

    risk: Risk
    eps: float | int = 0.0

    def __post_init__(self) -> None:
        _check_risk("risk", self.risk)
        _check.store(self, eps=_check.in_range("eps", self.eps, low=0.0))

    def __call__(self, outputs: Shaped[Tensor, "n *outputs"], batch: Batch, loss: SampleLoss) -> Float[Tensor, ""]:
        """Return the risk, a scalar with a graph to `outputs`."""
        value = self.risk(outputs, batch, loss) + self.eps
        if value.detach() <= 0:
            raise ValueError(
                f"Log needs a positive risk + eps, got {float(value.detach())} from {self.risk}; raise eps"
            )
        return torch.log(value)


@dataclass(frozen=True)
class Sqrt(Risk):
    """sqrt(risk + eps): for a penalty that is a square, its size; the gradient stays as large near the minimum.

    ``Sqrt(VREx())`` is the standard deviation of the environment risks, for two environments half their gap.
    Unlike `Log` it does not blow up where a penalty happens to pass through 0.

    Attributes:
        risk: a risk that is not negative.
        eps: > 0, keeps the gradient finite where the risk is 0.

    Raises (when called):
        ValueError: risk + eps is negative.
    """

    risk: Risk
    eps: float | int = 1e-12

    def __post_init__(self) -> None:
        _check_risk("risk", self.risk)
        _check.store(self, eps=_check.in_range("eps", self.eps, low=0.0, open_low=True))

    def __call__(self, outputs: Shaped[Tensor, "n *outputs"], batch: Batch, loss: SampleLoss) -> Float[Tensor, ""]:
        """Return the risk, a scalar with a graph to `outputs`."""
        value = self.risk(outputs, batch, loss) + self.eps
        if value.detach() < 0:
            raise ValueError(f"Sqrt needs risk + eps >= 0, got {float(value.detach())} from {self.risk}")
        return torch.sqrt(value)


def per_sample(outputs: Shaped[Tensor, "n *outputs"], batch: Batch, loss: SampleLoss) -> Float[Tensor, " n"]:
    """Return ``loss(outputs, batch.targets)``, checked to be one value a sample."""
    check_rows(loss, outputs, batch.targets)
    losses = loss(outputs, batch.targets)
    if losses.shape != (len(batch),) or not len(batch):
        raise ValueError(
            f"loss must give one value per sample, ({len(batch)},) with at least one sample, got "
            f'{tuple(losses.shape)}; pass reduction="none"'
        )
    return losses


def _check_risk(name: str, risk: Risk) -> None:
    _check.instance(name, risk, Risk, "a Risk, such as VREx()")


def _terms(risk: Risk) -> tuple[tuple[float | int, Risk], ...]:
    return risk.terms if isinstance(risk, WeightedSum) else ((1.0, risk),)
