"""Prescribed sample weights: a `Rule` maps the losses of a batch, and what is known of its samples, to weights.

A rule is called as ``rule(losses (b,), batch) -> (b,)`` weights, with losses that carry no gradient. The loss of the
step is ``sum_i w_i l_i`` over what the rule's `normalise` says. `GroupDRO`, `KLDRO` with memory and
`RelativeDifficulty` remember from batch to batch: make a new one for each run; their `state_dict` is what a run that is
resumed needs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard._support._text import few
from steelyard.bilevel.batch import Batch
from steelyard.reweight.risks import FIELDS, Field

__all__ = [
    "KLDRO",
    "CVaR",
    "Custom",
    "EffectiveNumber",
    "GeneralisedCrossEntropy",
    "GroupDRO",
    "GroupWeights",
    "RelativeDifficulty",
    "Rule",
    "TopQ",
    "Uniform",
]


class Rule(ABC):
    """Sample weights from losses and groups.

    Attributes:
        normalise: what the weighted sum of losses is divided by, as in `steelyard.bilevel.WeightedLoss`: "weights"
            (their sum), "batch" (the number of samples) or "none".
    """

    normalise: ClassVar[Literal["weights", "batch", "none"]] = "weights"

    @abstractmethod
    def __call__(self, losses: Float[Tensor, " b"], batch: Batch) -> Float[Tensor, " b"]:
        """Return the weights ``(b,)`` >= 0 of a batch with losses ``(b,)``."""

    def mean(self, losses: Float[Tensor, " b"], batch: Batch) -> Float[Tensor, ""]:
        """Return the weighted loss of a batch, with a graph to `losses` (none through the weights)."""
        weight = self(losses.detach(), batch)
        total = (weight * losses).sum()
        if self.normalise == "none":
            return total
        return total / (weight.sum() if self.normalise == "weights" else len(weight))


class Uniform(Rule):
    """All samples weigh the same: empirical risk minimisation."""

    def __call__(self, losses: Float[Tensor, " b"], batch: Batch) -> Float[Tensor, " b"]:
        """Return ones."""
        return torch.ones_like(losses)


class Custom(Rule):
    """A rule made of a function ``(losses (b,), batch) -> (b,)``; its weights are divided by their sum."""

    def __init__(self, function: Callable[[Tensor, Batch], Tensor]) -> None:
        self.function = _check.function("function", function, "a function of losses and a batch")

    def __call__(self, losses: Float[Tensor, " b"], batch: Batch) -> Float[Tensor, " b"]:
        """Return the function's weights."""
        return self.function(losses, batch)


class GroupWeights(Rule):
    """Up-weighting: a sample of group g weighs (n / n_g)^power; with the power 1 every group counts the same.

    Args:
        counts: ``(groups,)`` n_g, the training samples of each group; a group without any is an error.
        by: "group" or "environment": the labels of the batch that are read.
        power: 1 is the inverse frequency, 1/2 its square root, 0 weighs all samples alike.

    Example:
        >>> rule = GroupWeights(torch.tensor([6, 2]))
        >>> batch = Batch.of(torch.zeros(3, 1), torch.zeros(3), group=torch.tensor([0, 1, 0]))
        >>> rule(torch.zeros(3), batch)
        tensor([1.3333, 4.0000, 1.3333])
    """

    def __init__(self, counts: Int[Tensor, " groups"] | Numbers, by: Field = "group", power: float | int = 1.0) -> None:
        counts = _no_empty(counts)
        inverse = counts.sum() / counts
        self.per_group = inverse if power == 1 else inverse ** _check.in_range("power", power)
        self.by = _check.choice("by", by, FIELDS)

    def __call__(self, losses: Float[Tensor, " b"], batch: Batch) -> Float[Tensor, " b"]:
        """Return (n / n_g)^power for each sample's group."""
        return self.of(batch).to(losses)

    def of(self, batch: Batch) -> Float[Tensor, " b"]:
        """Return the weights of `batch`, which no loss moves: the chances of a balanced sampler too."""
        return self.per_group[group_ids(batch, self.by, len(self.per_group))]


class EffectiveNumber(GroupWeights):
    """Class-balanced weights (1 - beta) / (1 - beta^n_g), one over the effective number of samples.

    Cui et al. 2019 (arXiv:1901.05555), equation 10: beta 0 weighs all samples alike, beta towards 1 is `GroupWeights`
    but for a factor, which the weights' sum takes out of the loss.

    Args:
        counts: ``(groups,)`` n_g >= 1, the training samples of each class or group.
        beta: in [0, 1); published 0.9 to 0.9999. It is (N - 1) / N where a class can have N different samples.
        by: "group" or "environment": the labels of the batch that are read.

    Example:
        >>> EffectiveNumber([1, 2], beta=0.5).per_group
        tensor([1.0000, 0.6667])
    """

    def __init__(
        self, counts: Int[Tensor, " groups"] | Numbers, beta: float | int = 0.9999, by: Field = "group"
    ) -> None:
        super().__init__(counts, by)
        self.beta = float(_check.in_range("beta", beta, low=0.0, high=1.0, open_high=True))
        if self.beta:  # 1 - beta^n without the rounding of beta^n, which is close to 1
            effective = -torch.expm1(_no_empty(counts).double() * math.log(self.beta)) / (1 - self.beta)
            self.per_group = (1 / effective).float()
        else:
            self.per_group = torch.ones_like(self.per_group)


class TopQ(Rule):
    """Ordered SGD: the q largest losses of the batch weigh 1, the others 0 (Kawaguchi and Lu 2020, Algorithm 1).

    The loss of the step is the mean of the q largest. Over random batches this is an unbiased subgradient of
    ``(1/q) sum_j gamma_j l_(j)``, the objective whose generalisation `steelyard.theory` bounds.

    Args:
        q: >= 1, at most the batch size.
    """

    def __init__(self, q: int) -> None:
        if isinstance(q, float) and 0 < q < 1:
            raise ValueError(f"q is a number of samples, >= 1, got {q}; for that share of a batch take CVaR({q})")
        self.q = _check.integer("q", q, low=1)

    def __call__(self, losses: Float[Tensor, " b"], batch: Batch) -> Float[Tensor, " b"]:
        """Return the indicator of the q largest losses; among equals the first."""
        if self.q > len(losses):
            raise ValueError(f"q is {self.q}, but a batch has {len(losses)} samples; lower q or use larger batches")
        return _largest(losses, float(self.q))


class CVaR(Rule):
    """Conditional value at risk: the mean of the largest share alpha of the losses.

    ``max_q { sum q_i l_i : sum q_i = 1, 0 <= q_i <= 1 / (alpha b) }``: the floor(alpha b) largest losses weigh 1, the
    next one the fraction that remains. Below one sample (alpha b < 1) this is the largest loss.

    Args:
        alpha: in (0, 1]; 1 is the plain mean.

    Example:
        >>> losses = torch.tensor([1.0, 4.0, 3.0, 2.0])
        >>> CVaR(0.375)(losses, Batch.of(torch.zeros(4, 1), torch.zeros(4)))
        tensor([0.0000, 1.0000, 0.5000, 0.0000])
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = float(_check.in_range("alpha", alpha, low=0.0, high=1.0, open_low=True))

    def __call__(self, losses: Float[Tensor, " b"], batch: Batch) -> Float[Tensor, " b"]:
        """Return 1 for the largest, the remainder for the next, 0 for the others."""
        return _largest(losses, self.alpha * len(losses))


class GroupDRO(Rule):
    """Group DRO: the loss ``sum_g q_g R_g`` with q moved towards the worst group by an exponentiated step.

    At each batch ``q_g <- q_g exp(step (R_g + C / sqrt(n_g)))``, normalised, and then samples of g weigh ``q_g / b_g``,
    b_g of them in the batch (Sagawa et al. 2020, Algorithm 1 with all groups of a batch at once; the adjustment is
    of their section 3.3). A group without a sample in the batch keeps its place: only groups with a loss move. (The
    authors' code gives an absent group the loss 0 and, with an adjustment, still raises it.)

    Args:
        counts: ``(groups,)`` n_g of the training samples.
        step: the exponentiated step's size, > 0; published 0.01.
        adjustment: C >= 0, the generalisation adjustment: small groups count as worse, by C / sqrt(n_g).
        by: "group" or "environment".
    """

    normalise = "none"

    def __init__(
        self, counts: Int[Tensor, " groups"] | Numbers, step: float = 0.01, adjustment: float = 0.0, by: Field = "group"
    ) -> None:
        counts = _no_empty(counts)
        self.step = float(_check.in_range("step", step, low=0.0, open_low=True))
        self.margin = _check.in_range("adjustment", adjustment, low=0.0) / counts.double().sqrt()
        self.by = _check.choice("by", by, FIELDS)
        self.log_q = torch.full_like(self.margin, -math.log(len(counts)))

    @property
    def q(self) -> Float[Tensor, " groups"]:
        """The groups' weights, which sum to one."""
        return self.log_q.exp()

    def __call__(self, losses: Float[Tensor, " b"], batch: Batch) -> Float[Tensor, " b"]:
        """Take the exponentiated step, and return q_g / b_g for each sample's group."""
        groups = group_ids(batch, self.by, len(self.log_q))
        present = torch.bincount(groups, minlength=len(self.log_q))
        member = groups == torch.arange(len(present), device=groups.device)[:, None]
        risk = torch.where(member, losses.double(), 0).sum(1) / present.clamp(min=1)
        moved = self.log_q + torch.where(present > 0, self.step * (risk + self.margin), 0)
        self.log_q = moved - torch.logsumexp(moved, 0)
        return (self.q / present.clamp(min=1)).to(losses)[groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the groups' weights, in logarithms."""
        return {"log_q": self.log_q}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.log_q = state["log_q"].to(self.log_q)


class KLDRO(Rule):
    """KL-regularised DRO: ``w_i`` proportional to ``exp(l_i / temperature)``.

    ``max_q sum q_i l_i - t sum q_i log(b q_i) = t log mean exp(l / t)``, t the temperature, has this maximiser q
    (Gibbs's variational principle), and its gradient is that of ``sum_i w_i l_i``. For large t this is the mean, for
    small t the largest loss. On small batches the normaliser, a mean of exponentials, is estimated badly; with
    `memory` it is a moving average over batches (the compositional estimate of Qi et al. 2021, arXiv:2006.10138).

    Args:
        temperature: > 0, in units of the loss.
        memory: in [0, 1): the share of the old normaliser that is kept; 0 (the default) takes each batch's own.
    """

    normalise = "none"

    def __init__(self, temperature: float, memory: float = 0.0) -> None:
        self.temperature = float(_check.in_range("temperature", temperature, low=0.0, open_low=True))
        self.memory = float(_check.in_range("memory", memory, low=0.0, high=1.0, open_high=True))
        self.log_normaliser: Tensor | None = None

    def __call__(self, losses: Float[Tensor, " b"], batch: Batch) -> Float[Tensor, " b"]:
        """Return exp(l_i / temperature) / (b u), u the normaliser; without memory they sum to one."""
        scaled = losses.double() / self.temperature
        log_mean = torch.logsumexp(scaled, 0) - math.log(len(losses))
        if self.memory and self.log_normaliser is not None:  # in logarithms: losses of 100 temperatures are no overflow
            old, new = self.log_normaliser + math.log(self.memory), log_mean + math.log1p(-self.memory)
            log_mean = torch.logaddexp(old, new)
        self.log_normaliser = log_mean
        return torch.exp(scaled - log_mean - math.log(len(losses))).to(losses)

    def state_dict(self) -> dict[str, Any]:
        """Return the normaliser's moving average, in logarithms; None before the first batch."""
        return {"log_normaliser": self.log_normaliser}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.log_normaliser = state["log_normaliser"]


class GeneralisedCrossEntropy(Rule):
    """Weights that turn the gradient of cross-entropy into that of ``(1 - p_y^q) / q``: ``p_y^q = exp(-q l)``.

    What is easy gets easier: the biased model of LfF (Nam et al. 2020, section 3, from Zhang and Sabuncu 2018). The
    authors' code has one more factor q, which Adam does not notice. Needs a loss that is ``-log p_y``.

    Args:
        q: in [0, 1]; published 0.7. 0 is plain cross-entropy.
    """

    normalise = "batch"

    def __init__(self, q: float = 0.7) -> None:
        self.q = float(_check.in_range("q", q, low=0.0, high=1.0))

    def __call__(self, losses: Float[Tensor, " b"], batch: Batch) -> Float[Tensor, " b"]:
        """Return exp(-q l)."""
        return torch.exp(-self.q * losses)


class RelativeDifficulty:
    """LfF's weights ``L_b / (L_b + L_d)`` of the losses of a biased and a debiased model (Nam et al. 2020, section 3).

    Both losses are first averaged over the visits of a sample (a moving average that starts at the first value) and
    divided by the largest average of the sample's class, as the authors' code does. Near 1 for samples that only the
    biased model finds hard.

    Args:
        targets: ``(n,)`` the class of every training sample.
        memory: of the moving average, in [0, 1); published 0.7.
    """

    def __init__(self, targets: Int[Tensor, " n"] | Numbers, memory: float = 0.7) -> None:
        self.memory = float(_check.in_range("memory", memory, low=0.0, high=1.0, open_high=True))
        targets = _check.integers("targets", targets)
        if not len(targets) or int(targets.min()) < 0:
            raise ValueError(f"targets must hold class ids >= 0, one a training sample, got {targets.tolist()[:5]}")
        self.classes = targets == torch.arange(int(targets.max()) + 1, device=targets.device)[:, None]
        self.averages = torch.zeros(2, len(targets), device=targets.device)
        self.seen = torch.zeros(len(targets), dtype=torch.bool, device=targets.device)

    def __call__(self, biased: Float[Tensor, " b"], debiased: Float[Tensor, " b"], batch: Batch) -> Float[Tensor, " b"]:
        """Return the weights; the batch's `index` are positions in the targets, each at most once."""
        old, new = self.averages[:, batch.index], torch.stack([biased, debiased]).to(self.averages)
        averaged = torch.where(self.seen[batch.index], self.memory * old + (1 - self.memory) * new, new)
        self.averages[:, batch.index] = averaged
        self.seen[batch.index] = True
        largest = torch.where(self.classes[:, None], self.averages, 0).amax(-1)  # (classes, 2)
        ratios = averaged / largest[batch.targets].T.clamp(min=torch.finfo(averaged.dtype).tiny)
        # Both 0: the debiased model has nothing left to learn from it either way.
        return (ratios[0] / (ratios[0] + ratios[1] + 1e-8)).to(debiased)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages of the losses, and which samples were visited."""
        return {"averages": self.averages, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.averages.copy_(state["averages"])
        self.seen.copy_(state["seen"])


def group_ids(batch: Batch, by: Field, groups: int) -> Int[Tensor, " b"]:
    """Return the batch's ids of `by`; ValueError where it has none, or one that is not below `groups`."""
    ids = getattr(batch, by)
    if ids is None:
        raise ValueError(f"this rule needs {by} ids, but batch.{by} is None; make the batch with {by}=...")
    ids = _check.integers(f"batch.{by}", ids)
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < groups:
        raise ValueError(f"batch.{by} must hold ids 0 .. {groups - 1}, got {int(ids.min())} .. {int(ids.max())}")
    return ids


def _no_empty(counts: Tensor | Numbers) -> Tensor:
    found = _check.integers("counts", counts)
    if not len(found) or int(found.min()) < 1:
        raise ValueError(f"counts needs at least one training sample in every group, got [{few(found.tolist())}]")
    return found


def _largest(losses: Tensor, amount: float) -> Tensor:
    """Weigh the largest losses by 1 until `amount` is used up, the last of them by what remains."""
    order = torch.argsort(losses, descending=True, stable=True)
    left = amount - torch.arange(len(losses), device=losses.device, dtype=torch.float64)
    return torch.empty_like(losses).index_copy_(0, order, left.clamp(0, 1).to(losses))
