"""Bernoulli masks that a gradient passes through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.distributed import ALONE, Ranks
from steelyard.reweight.schedules import LinearTemperature

__all__ = ["Mask", "check_probabilities"]

_SATURATION = 1e-6  # logit s is taken at s clamped to [this, 1 - this]: finite at s = 0 and s = 1


@dataclass(frozen=True)
class Mask:
    """Sample 0/1 masks from keep-probabilities; straight-through gradient to the probabilities.

    Forward: ``m_i = 1[u_i < s_i]`` with u uniform on [0, 1), which is exactly Bernoulli(s_i), whatever the
    temperature; it is the hard Gumbel-softmax sample, since ``u < s`` and ``logit s - logit u > 0`` are one
    event and ``-logit u`` is logistic noise. Backward, one of two surrogates for d m_i / d s_i:

    - ``"identity"`` (default): 1. The expectation E_m Phi(m) is linear in each s_i with slope
      E[Phi(m_i = 1) - Phi(m_i = 0)], so to first order in m_i this is unbiased and adds no noise of its own.
    - ``"relaxed"``: the derivative of the relaxed sample sigmoid((logit s + logistic noise) / temperature),
      as in the paper. Its size depends on the noise, with heavy tails as s nears 0 or 1, exactly where a
      projection onto the box puts most of the probabilities; there ``logit s`` is taken at s clamped by 1e-6,
      so it stays finite.

    Attributes:
        estimator: "identity" or "relaxed".
        temperature: of the relaxed sample, a positive number or a function of progress in [0, 1]; not used by
            "identity".

    References:
        Zhou et al., "Model Agnostic Sample Reweighting for Out-of-Distribution Learning", ICML 2022,
        Algorithm 1.
        Jang et al., "Categorical Reparameterization with Gumbel-Softmax", ICLR 2017 (straight-through form).
        Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons", 2013 (identity form).

    Example:
        >>> s = torch.tensor([0.0, 1.0], requires_grad=True)
        >>> m = Mask()(s, torch.Generator().manual_seed(0))
        >>> m.tolist(), torch.autograd.grad(m.sum(), s)[0].tolist()
        ([0.0, 1.0], [1.0, 1.0])
    """

    estimator: Literal["identity", "relaxed"] = "identity"
    temperature: float | int | Callable[[float], float] = field(default_factory=LinearTemperature)

    def __post_init__(self) -> None:
        _check.choice("estimator", self.estimator, ["identity", "relaxed"])
        if not callable(self.temperature):
            _check.store(self, temperature=_check.in_range("temperature", self.temperature, low=0.0, open_low=True))

    def __call__(
        self,
        probabilities: Float[Tensor, "*shape"] | Numbers,
        generator: torch.Generator,
        *,
        draws: int | None = None,
        progress: float | int = 0.0,
        ranks: Ranks = ALONE,
    ) -> Float[Tensor, "..."]:
        """Draw masks.

        Args:
            probabilities: ``(*shape,)`` in [0, 1].
            generator: source of the noise; on its own device (the noise is moved to that of `probabilities`).
            draws: number of independent masks; None for one without the leading dimension.
            progress: how far the outer run is, in [0, 1]; only the temperature schedule reads it.
            ranks: the processes that hold the probabilities, each a share along the last dimension; with generators in
                the same state on all of them the draw is that of one process. (Each draws the noise of all samples and
                keeps its own.)

        Returns:
            ``(*shape,)``, or ``(draws, *shape)``: entries exactly 0 or 1, dtype of `probabilities`, with a
            graph to `probabilities` if that requires a gradient.

        Raises:
            ValueError: a probability outside [0, 1] or NaN, or draws < 1.
        """
        _check.generator("generator", generator)
        probabilities = ranks.together(lambda: _between(probabilities))
        leading = () if draws is None else (_check.integer("draws", draws, low=1),)
        uniform = _uniform((*leading, *probabilities.shape), generator, probabilities.device, ranks)
        hard = (uniform < probabilities.detach()).to(probabilities.dtype)
        if not (probabilities.requires_grad and torch.is_grad_enabled()):
            return hard
        soft = probabilities if self.estimator == "identity" else self._relaxed(probabilities, uniform, progress)
        return hard + (soft - soft.detach())  # the bracket is exactly 0, so the sum is exactly `hard`

    def relaxed(
        self,
        probabilities: Float[Tensor, "*shape"] | Numbers,
        generator: torch.Generator,
        *,
        progress: float | int = 0.0,
    ) -> Float[Tensor, "*shape"]:
        """Draw the relaxed sample itself, in [0, 1] and not 0 or 1: sigmoid((logit s + logistic noise) / temperature).

        It exceeds 1/2 with probability s. For methods whose training is over relaxed masks.

        Raises:
            ValueError: a probability outside [0, 1] or NaN.
        """
        _check.generator("generator", generator)
        probabilities = _between(probabilities)
        return self._relaxed(probabilities, _uniform(probabilities.shape, generator, probabilities.device), progress)

    def _relaxed(self, probabilities: Tensor, uniform: Tensor, progress: float) -> Tensor:
        temperature = self.temperature(progress) if callable(self.temperature) else self.temperature
        _check.in_range("temperature", temperature, low=0.0, open_low=True)
        clamped = probabilities.double().clamp(_SATURATION, 1 - _SATURATION)
        # The clamp's own derivative is 0 outside; pass it, so that a saturated probability can come back.
        inside = probabilities.double() + (clamped - probabilities.double()).detach()
        tiny = torch.finfo(torch.float64).tiny  # u = 0 has logit -inf
        noise = -torch.logit(uniform.clamp(tiny, 1 - 2**-53))
        return torch.sigmoid((torch.logit(inside) + noise) / temperature).to(probabilities.dtype)


def _uniform(shape: tuple[int, ...], generator: torch.Generator, device: torch.device, ranks: Ranks = ALONE) -> Tensor:
    """Draw on the generator's device, in float64: float32 has 2^-24 steps, too coarse for Bernoulli(1e-8)."""
    if ranks.size == 1:
        return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64).to(device)
    start, total = ranks.place(shape[-1])
    everywhere = _uniform((*shape[:-1], total), generator, device)
    return everywhere[..., start : start + shape[-1]].contiguous()


def _between(probabilities: Tensor | Numbers) -> Tensor:
    found = _check.floats("probabilities", probabilities)
    check_probabilities(found)
    return found


def check_probabilities(probabilities: Float[Tensor, "*shape"]) -> None:
    """Raise ValueError if an entry is outside [0, 1] or NaN."""
    _check.entries_in("probabilities", probabilities, 0, 1, "; project them with project_box_simplex")
