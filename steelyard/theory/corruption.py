"""Corruptions g of a sample: label flips and damaged inputs.

Theorem 1 takes g_i^x and g_i^y as fixed functions of one sample. A random g_i is covered too: enlarge sample i by its
own random number, and g_i is a fixed function of the enlarged sample; the proof does not change. So is a flip that
looks at x as well as y. What is not covered is a g that looks at other samples: `is_fixed` is then False, and
`require_fixed` refuses it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from steelyard._support import _check

__all__ = [
    "AdversarialFlips",
    "BlankInputs",
    "ClassConditionalFlips",
    "Corruption",
    "FeatureDependentFlips",
    "InputNoise",
    "NoCorruption",
    "RankedFlips",
    "UniformFlips",
    "require_fixed",
]

Data = tuple[Tensor, Tensor]


@runtime_checkable
class Corruption(Protocol):
    """A function (inputs, targets, generator) -> (inputs, targets) of the same shapes; nothing is changed in place."""

    is_fixed: bool

    def __call__(self, inputs: Tensor, targets: Tensor, generator: torch.Generator) -> Data:
        """Return the corrupted inputs and targets."""
        ...


def require_fixed(corruption: Corruption) -> Corruption:
    """Return `corruption` if Theorem 1 covers it; ValueError otherwise."""
    if not corruption.is_fixed:
        raise ValueError(
            f"Theorem 1 needs g_i to depend on sample i alone, and {type(corruption).__name__} looks at "
            "the whole sample; AdversarialFlips with a fixed rule is covered"
        )
    return corruption


@dataclass(frozen=True)
class NoCorruption:
    """The identity."""

    is_fixed = True

    def __call__(self, inputs: Tensor, targets: Tensor, generator: torch.Generator) -> Data:
        """Return the data as it is."""
        return inputs, targets


@dataclass(frozen=True)
class UniformFlips:
    """With probability `rate` a label becomes another one, each of the others alike.

    Args:
        rate: in [0, 1]. classes: number of classes, at least 2.
    """

    rate: float
    classes: int = 2
    is_fixed = True

    def __post_init__(self) -> None:
        _check.in_range("rate", self.rate, low=0.0, high=1.0)
        _check.integer("classes", self.classes, low=2)

    def __call__(
        self, inputs: Shaped[Tensor, "*batch"], targets: Int[Tensor, "*n"], generator: torch.Generator
    ) -> Data:
        """Flip ``targets``; inputs are left alone."""
        flip = torch.rand(targets.shape, generator=generator) < self.rate
        return inputs, _shifted(targets, flip, self.classes, generator)


@dataclass(frozen=True)
class ClassConditionalFlips:
    """Label c becomes label d with probability `matrix[c][d]`.

    Args:
        matrix: ``(classes, classes)``, rows sum to one.
    """

    matrix: tuple[tuple[float, ...], ...]
    is_fixed = True

    def __post_init__(self) -> None:
        for label, row in enumerate(self.matrix):
            if len(row) != len(self.matrix) or min(row) < 0 or abs(sum(row) - 1) > 1e-6:
                raise ValueError(
                    f"matrix must be square with rows of probabilities that sum to 1; row {label} is {row}"
                )

    def __call__(
        self, inputs: Shaped[Tensor, "*batch"], targets: Int[Tensor, "*n"], generator: torch.Generator
    ) -> Data:
        """Redraw ``targets`` from their rows; inputs are left alone."""
        cumulative = torch.tensor(self.matrix, dtype=torch.float64).cumsum(1)
        cumulative[:, -1] = 1.0
        u = torch.rand(targets.shape, generator=generator, dtype=torch.float64)
        return inputs, (u.unsqueeze(-1) >= cumulative[targets]).sum(-1).to(targets.dtype)


@dataclass(frozen=True)
class FeatureDependentFlips:
    """A label flips with a probability that depends on its input: heteroskedastic noise, as in the paper's data sets.

    Args:
        rate: inputs -> probabilities in [0, 1], in the shape of the targets.
        classes: number of classes; the new label is one of the others, each alike.
    """

    rate: Callable[[Tensor], Tensor]
    classes: int = 2
    is_fixed = True

    def __call__(
        self, inputs: Shaped[Tensor, "*batch"], targets: Int[Tensor, "*n"], generator: torch.Generator
    ) -> Data:
        """Flip ``targets``; inputs are left alone. ValueError if a rate is outside [0, 1]."""
        rate = self.rate(inputs)
        if not bool(((rate >= 0) & (rate <= 1)).all()):
            raise ValueError(
                f"rate must return probabilities in [0, 1], got {float(rate.min())} to {float(rate.max())}"
            )
        flip = torch.rand(targets.shape, generator=generator) < rate
        return inputs, _shifted(targets, flip, self.classes, generator)


@dataclass(frozen=True)
class AdversarialFlips:
    """Every sample that a fixed rule names gets the label that the rule wants: the worst g that Theorem 1 covers.

    Args:
        rule: (inputs, targets) -> new targets, sample by sample. It may know Theta, the distribution and a target
            hypothesis; it may not compare samples.
    """

    rule: Callable[[Tensor, Tensor], Tensor]
    is_fixed = True

    def __call__(
        self, inputs: Shaped[Tensor, "*batch"], targets: Int[Tensor, "*n"], generator: torch.Generator
    ) -> Data:
        """Apply the rule; inputs are left alone."""
        return inputs, self.rule(inputs, targets)


@dataclass(frozen=True)
class RankedFlips:
    """The fraction `rate` of samples that score highest in the whole sample gets flipped (two classes).

    An adversary with a budget, who looks at all of D: outside Theorem 1 (`is_fixed` is False).

    Args:
        rate: in [0, 1]; floor(rate n) labels flip. score: (inputs, targets) -> ``(*draws, n)``, ranked along the last
            axis.
    """

    rate: float
    score: Callable[[Tensor, Tensor], Tensor]
    is_fixed = False

    def __call__(
        self, inputs: Shaped[Tensor, "*batch"], targets: Int[Tensor, "*n"], generator: torch.Generator
    ) -> Data:
        """Flip the top scorers; inputs are left alone."""
        _check.in_range("rate", self.rate, low=0.0, high=1.0)
        chosen = self.score(inputs, targets).topk(int(self.rate * targets.shape[-1]), dim=-1).indices
        return inputs, targets.scatter(-1, chosen, 1 - targets.gather(-1, chosen))


@dataclass(frozen=True)
class InputNoise:
    """Gaussian noise on the inputs, cut back to the input space.

    Args:
        std: standard deviation, in the units of the inputs. low, high: the input space; M must hold on it.
    """

    std: float
    low: float
    high: float
    is_fixed = True

    def __call__(
        self, inputs: Float[Tensor, "*batch"], targets: Shaped[Tensor, "*n"], generator: torch.Generator
    ) -> Data:
        """Add the noise; targets are left alone."""
        noise = torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)
        return (inputs + self.std * noise).clamp(self.low, self.high), targets


@dataclass(frozen=True)
class BlankInputs:
    """With probability `rate` a sample's input is blanked (the paper's Noisy-Blank, without its random labels).

    Args:
        rate: in [0, 1]. value: what a blank input holds. feature_dims: trailing dimensions that make up one input.
    """

    rate: float
    value: float = 0.0
    feature_dims: int = 0
    is_fixed = True

    def __call__(
        self, inputs: Float[Tensor, "*batch"], targets: Shaped[Tensor, "*n"], generator: torch.Generator
    ) -> Data:
        """Blank inputs; targets are left alone."""
        _check.in_range("rate", self.rate, low=0.0, high=1.0)
        lead = inputs.shape[: inputs.dim() - self.feature_dims]
        blank = torch.rand(lead, generator=generator) < self.rate
        blank = blank.reshape(*lead, *([1] * self.feature_dims))
        return inputs.masked_fill(blank, self.value), targets


def _shifted(
    targets: Int[Tensor, "*n"], flip: Bool[Tensor, "*n"], classes: int, generator: torch.Generator
) -> Int[Tensor, "*n"]:
    """Move the flipped labels on by 1 .. classes-1 at random: never to themselves."""
    shift = torch.randint(1, classes, targets.shape, generator=generator) if classes > 2 else torch.ones_like(targets)
    return torch.where(flip, (targets + shift) % classes, targets)
