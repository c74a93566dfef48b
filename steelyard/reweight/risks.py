"""Risks that compare environments or groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from steelyard._support import _check
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.objective import SampleLoss
from steelyard.reweight.risk import Risk, per_sample

__all__ = ["GroupWorst", "IRMv1", "SoftGroupWorst", "VREx"]

Field = Literal["environment", "group"]
FIELDS: tuple[Field, ...] = get_args(Field)


@dataclass(frozen=True)
class IRMv1(Risk):
    """Mean over environments of (d R_e / d scale)^2 at scale 1, the outputs being multiplied by the scale.

    The penalty alone; add `MeanRisk` for the objective of the paper. All environments come from one pass: the
    derivative is taken per sample, then averaged within environments.

    Attributes:
        unbiased: estimate the square by the product of the derivatives on two halves of each environment (its
            samples at even and at odd places, so shuffle ordered data). Unbiased for the population's penalty
            where the samples are independent; may be negative. Every environment then needs two samples.

    Raises (when called):
        ValueError: no environment labels, fewer than two environments, or one without enough samples.

    References:
        Arjovsky et al., "Invariant Risk Minimization", 2019, section 3.1; appendix D for the two halves.
    """

    unbiased: bool = False

    def __post_init__(self) -> None:
        _check.boolean("unbiased", self.unbiased)

    def __call__(self, outputs: Shaped[Tensor, "n *outputs"], batch: Batch, loss: SampleLoss) -> Float[Tensor, ""]:
        """Return the risk, a scalar with a graph to `outputs`."""
        environment = _labels(batch, "environment", at_least=2)
        slopes = scale_derivatives(outputs, batch, loss)
        if not self.unbiased:
            return _means(slopes, environment).square().mean()
        half = _place_within(environment) % 2
        count = int(environment.max()) + 1
        if int(torch.bincount(environment).min()) < 2:
            raise ValueError("IRMv1(unbiased=True) needs at least two samples in every environment")
        even, odd = _means(slopes, environment + count * half).chunk(2)
        return (even * odd).mean()


@dataclass(frozen=True)
class VREx(Risk):
    """Variance (over environments, divided by their number) of the environment risks, plus an optional mean.

    Attributes:
        mean: coefficient of the mean of the environment risks (each environment counts the same).

    Raises (when called):
        ValueError: no environment labels, fewer than two environments, or an empty one.

    References:
        Krueger et al., "Out-of-Distribution Generalization via Risk Extrapolation", ICML 2021 (V-REx).
    """

    mean: float | int = 0.0

    def __post_init__(self) -> None:
        _check.store(self, mean=_check.in_range("mean", self.mean))

    def __call__(self, outputs: Shaped[Tensor, "n *outputs"], batch: Batch, loss: SampleLoss) -> Float[Tensor, ""]:
        """Return the risk, a scalar with a graph to `outputs`."""
        risks = _means(per_sample(outputs, batch, loss), _labels(batch, "environment", at_least=2))
        return risks.var(correction=0) + self.mean * risks.mean()


@dataclass(frozen=True)
class GroupWorst(Risk):
    """Largest group risk; where groups tie, the gradient is shared equally.

    Attributes:
        by: "group" or "environment".

    Raises (when called):
        ValueError: no such labels, or a group without a sample.
    """

    by: Field = "group"

    def __post_init__(self) -> None:
        _check.choice("by", self.by, FIELDS)

    def __call__(self, outputs: Shaped[Tensor, "n *outputs"], batch: Batch, loss: SampleLoss) -> Float[Tensor, ""]:
        """Return the risk, a scalar with a graph to `outputs`."""
        return _means(per_sample(outputs, batch, loss), _labels(batch, self.by)).amax()


@dataclass(frozen=True)
class SoftGroupWorst(Risk):
    """Smooth worst group, temperature * log mean_g exp(R_g / temperature): below the maximum, above the mean.

    Attributes:
        temperature: > 0, in units of the loss; to 0 this is `GroupWorst`, to infinity the mean over groups.
        by: "group" or "environment".

    Raises (when called):
        ValueError: no such labels, or a group without a sample.
    """

    temperature: float | int
    by: Field = "group"

    def __post_init__(self) -> None:
        _check.store(self, temperature=_check.in_range("temperature", self.temperature, low=0.0, open_low=True))
        _check.choice("by", self.by, FIELDS)

    def __call__(self, outputs: Shaped[Tensor, "n *outputs"], batch: Batch, loss: SampleLoss) -> Float[Tensor, ""]:
        """Return the risk, a scalar with a graph to `outputs`."""
        risks = _means(per_sample(outputs, batch, loss), _labels(batch, self.by)) / self.temperature
        return self.temperature * (torch.logsumexp(risks, 0) - torch.log(risks.new_tensor(risks.numel())))


def scale_derivatives(
    outputs: Shaped[Tensor, "n *outputs"], batch: Batch, loss: SampleLoss, at: Float[Tensor, " n"] | None = None
) -> Float[Tensor, " n"]:
    """Return d loss_i(scale * outputs_i) / d scale, ``(n,)``, at scale 1 or `at`, with a graph to `outputs`."""
    wanted = torch.is_grad_enabled() and outputs.requires_grad
    with torch.enable_grad():  # the penalty is a derivative even where it is only reported
        place = outputs.new_ones(len(outputs)) if at is None else at.to(outputs)
        scale = place.reshape(-1, *[1] * (outputs.ndim - 1)).clone().requires_grad_()
        losses = per_sample(outputs * scale, batch, loss)
        (slopes,) = torch.autograd.grad(losses.sum(), scale, create_graph=wanted)
    return slopes.reshape(-1)


def _labels(batch: Batch, by: Field, at_least: int = 1) -> Int[Tensor, " n"]:
    """Return the ids 0 .. E-1 of `batch`, every one of them present."""
    labels = getattr(batch, by)
    if labels is None:
        raise ValueError(f"this risk needs {by} ids, but batch.{by} is None; make the batch with {by}=...")
    labels = _check.integers(f"batch.{by}", labels)
    if not len(labels) or int(labels.min()) < 0:
        raise ValueError(f"batch.{by} must hold ids 0, 1, ... for at least one sample, got {labels.tolist()[:5]}...")
    counts = torch.bincount(labels)
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"batch.{by} has no sample with id {empty} (ids must be 0 .. {len(counts) - 1})")
    if len(counts) < at_least:
        raise ValueError(f"this risk compares {by}s: it needs at least {at_least} of them, got {len(counts)}")
    return labels


def _means(values: Tensor, labels: Tensor) -> Tensor:
    """Mean of `values` ``(n,)`` for every id, ``(ids,)``; every id must be present."""
    counts = torch.bincount(labels)
    # Not index_add: its atomics make sums on a GPU depend on the order of threads.
    members = labels == torch.arange(len(counts), device=labels.device)[:, None]  # (ids, n)
    return torch.where(members, values, 0).sum(1) / counts


def _place_within(labels: Tensor) -> Tensor:
    """For every sample, how many earlier samples share its id."""
    order = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    place = torch.empty_like(labels)
    place[order] = torch.arange(len(labels), device=labels.device) - starts[labels[order]]
    return place
