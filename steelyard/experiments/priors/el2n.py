"""EL2N, the size of the error vector early in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from steelyard import selectors
from steelyard._support._modules import class_logits
from steelyard.experiments.priors._term import CHUNK, kept
from steelyard.experiments.priors.ensemble import EnsembleTerm
from steelyard.experiments.training.problem import Problem

__all__ = ["EL2N"]


@dataclass(frozen=True)
class EL2N(EnsembleTerm):
    """||p - e_y|| early in training, averaged over proxies. High = hard, or mislabelled: `keep` is "low" by default.

    References:
        Paul et al., Deep learning on a data diet, NeurIPS 2021 (who keep the high ones, of clean data).
    """

    keep: Literal["high", "low"] = kept("el2n")
    name: Literal["el2n"] = "el2n"

    def of(self, problem: Problem, ensemble: selectors.Ensemble) -> Float[Tensor, " n"]:
        """Return EL2N ``(n,)``."""
        with torch.no_grad():
            parts = problem.splits.train.chunks(CHUNK)
            scores = [selectors.el2n(class_logits(ensemble(p.inputs)).softmax(2), p.targets) for p in parts]
        return torch.cat(scores)
