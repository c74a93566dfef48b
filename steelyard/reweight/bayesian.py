"""The IRM penalty under uncertainty about each environment's best scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from steelyard._support import _check
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.objective import SampleLoss
from steelyard.reweight.risk import Risk
from steelyard.reweight.risks import _labels, _means, scale_derivatives

__all__ = ["BayesianIRM"]


@dataclass(frozen=True)
class BayesianIRM(Risk):
    """The IRMv1 penalty averaged over draws of the scales: mean over draws and environments of (d R_e / d s at s_e)^2.

    Each draw takes a scale ``s_e ~ N(1, spread^2)`` for every environment, independently. With spread 0 this is
    `IRMv1`; a net that overfits has a penalty of zero at scale 1 alone, which a spread does not let pass.

    Attributes:
        spread: standard deviation of the scales, >= 0; the authors' code takes c / n, n training samples.
        generator: source of the scales; a CPU one. Each call draws again.
        draws: scales drawn for each environment at each call; published 10.

    Raises (when called):
        ValueError: no environment labels, fewer than two environments, or one without a sample.

    References:
        Lin et al., "Bayesian Invariant Risk Minimization", CVPR 2022 (the Gaussian posterior with a fixed spread, as
        in their code).
    """

    spread: float | int
    generator: torch.Generator
    draws: int = 10

    def __post_init__(self) -> None:
        spread, draws = _check.in_range("spread", self.spread, low=0.0), _check.integer("draws", self.draws, low=1)
        _check.store(self, spread=spread, draws=draws)
        _check.generator("generator", self.generator)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the generator."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.generator.set_state(state["generator"])

    def __call__(self, outputs: Shaped[Tensor, "n *outputs"], batch: Batch, loss: SampleLoss) -> Float[Tensor, ""]:
        """Return the risk, a scalar with a graph to `outputs`."""
        environment = _labels(batch, "environment", at_least=2)
        noise = torch.randn(self.draws, int(environment.max()) + 1, generator=self.generator)
        scales = (1 + self.spread * noise).to(outputs.device)
        slopes = [scale_derivatives(outputs, batch, loss, at=draw[environment]) for draw in scales]
        return torch.stack([_means(slope, environment).square().mean() for slope in slopes]).mean()
