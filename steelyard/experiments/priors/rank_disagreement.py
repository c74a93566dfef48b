"""DR-IS's score: rank disagreement of proxies, with its certificate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from steelyard import selectors
from steelyard._support import _check
from steelyard.experiments.priors._term import CHUNK, kept
from steelyard.experiments.priors.ensemble import EnsembleTerm, sample_losses
from steelyard.experiments.training.problem import Problem

__all__ = ["RankDisagreement"]


@dataclass(frozen=True)
class RankDisagreement(EnsembleTerm):
    """DR-IS: how differently short, independent proxy runs rank a sample's loss (low = mislabelled in the bulk).

    The certificate of `selectors.certificate`, of the same proxies, is filed with the prior: the gap, the radius t,
    whether it holds (gap > 2 t), and the share of samples above the gap. With 1,079 samples and delta = 0.05 a gap of
    0.1 needs some 4,300 proxies, so that at the usual sizes it says how far from certain the split is.

    Attributes:
        models: number of proxies, >= 2.
        training: of each proxy. Full batches (the default) share their order; the certificate takes proxies as
            independent given the samples, which they are: their initial parameters differ.
        delta: of the certificate, the probability of its failure.

    References:
        See `steelyard.selectors.rank_disagreement` and `steelyard.selectors.certificate`.
    """

    fewest: ClassVar[int] = 2
    keep: Literal["high", "low"] = kept("rank_disagreement")
    name: Literal["rank_disagreement"] = "rank_disagreement"
    delta: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        _check.in_range("delta", self.delta, low=0.0, high=1.0, open_low=True, open_high=True)

    def of(self, problem: Problem, ensemble: selectors.Ensemble) -> Float[Tensor, " n"]:
        """Return D_i ``(n,)``."""
        with torch.no_grad():
            parts = problem.splits.train.chunks(CHUNK)
            losses = [sample_losses(problem, ensemble(p.inputs), p.targets.expand(self.models, -1)) for p in parts]
        return selectors.rank_disagreement(torch.cat(losses, dim=1))

    def figures(self, scores: Tensor) -> dict[str, float]:
        """Return the certificate's figures: gap, radius, holds (1 or 0), above_gap (a share)."""
        found = selectors.certificate(scores, self.models, delta=self.delta)
        above = float(found.keep.double().mean())
        return {"gap": found.gap, "radius": found.radius, "holds": float(found.holds), "above_gap": above}
