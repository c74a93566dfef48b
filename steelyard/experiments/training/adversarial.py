"""Adversarial examples by projected gradient ascent (PGD), training on them, and accuracy under them.

Training stays the one trainer's: an `Adversary` attacks each step's batch, against the model as it is at that step::

    train(problem, settings, observe, perturb=Adversary(PGD(epsilon=0.2, step=0.05, steps=7), problem.loss, seed))
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from steelyard._support import _check
from steelyard._support._modules import evaluating
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.objective import SampleLoss
from steelyard.experiments.models import Head
from steelyard.experiments.training.seeds import generator

__all__ = ["PGD", "Adversary", "robust_accuracy"]


@dataclass(frozen=True)
class PGD:
    """Projected gradient ascent on each sample's loss, inside of an L-infinity ball (Madry et al. 2018, section 2.1).

    ``x <- project(x + step * sign(d loss / d x))``; the projection is onto ``|x - x_clean| <= epsilon`` and onto the
    range of the inputs. The last iterate is the adversarial example, as published, not the worst one on the way.

    Attributes:
        epsilon: radius of the ball, in units of the inputs. 0: no attack, samples stay as they are.
        step: length of a step, in the same units.
        steps: how many.
        random_start: begin at a point drawn evenly from the ball (cut to the range) and not at the sample itself.
        low: the least value that an input may have.
        high: the greatest.

    References:
        A. Madry et al., Towards deep learning models resistant to adversarial attacks, ICLR 2018, arXiv:1706.06083.
        The defaults are the MNIST settings of Guo et al., Robust Active Learning, 2021, arXiv:2112.02542.

    Example:
        >>> model = nn.Linear(1, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[1.0], [-1.0]]))
        >>> batch = Batch.of(torch.tensor([[0.5]]), torch.tensor([0]))
        >>> loss = nn.CrossEntropyLoss(reduction="none")
        >>> attack = PGD(epsilon=0.25, step=0.125, steps=3)
        >>> attack(model, batch, loss, generator=torch.Generator().manual_seed(0)).inputs
        tensor([[0.2500]])
    """

    name: Literal["pgd"] = "pgd"
    epsilon: float = 0.3
    step: float = 0.01
    steps: int = 40
    random_start: bool = True
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _check.in_range("epsilon", self.epsilon, low=0.0)
        _check.in_range("step", self.step, low=0.0, open_low=True)
        _check.integer("steps", self.steps, low=1)
        _check.in_range("low", self.low)
        _check.in_range("high", self.high, low=self.low, open_low=True)

    def __call__(self, model: nn.Module, batch: Batch, loss: SampleLoss, *, generator: torch.Generator) -> Batch:
        """Return the batch with adversarial inputs, without a graph; all else in it is the same.

        The model is attacked in evaluation mode (no dropout, BatchNorm's running statistics, which stay as they are)
        and left as it was: modes, parameters, and whatever stands in their `grad`.

        Args:
            model: inputs ``(b, ...)`` to what `loss` takes.
            batch: floating inputs within [low, high].
            loss: the per-sample loss that is driven up.
            generator: source of the random start.

        Raises:
            ValueError: inputs outside of [low, high], or a gradient that is not finite. TypeError: inputs of integers.
        """
        if not self.epsilon:
            return batch
        clean = self._inputs(batch)
        least, most = (clean - self.epsilon).clamp(min=self.low), (clean + self.epsilon).clamp(max=self.high)
        moved = clean
        if self.random_start:
            noise = torch.rand(clean.shape, generator=generator, dtype=clean.dtype, device=generator.device)
            moved = torch.clamp(clean + self.epsilon * (2 * noise.to(clean.device) - 1), least, most)
        with evaluating(model), torch.enable_grad():
            for _ in range(self.steps):
                moved.requires_grad_()
                (gradient,) = torch.autograd.grad(loss(model(moved), batch.targets).sum(), moved)
                _check.finite("the gradient by the inputs", gradient)  # the sign of NaN is 0: no attack, unnoticed
                moved = torch.clamp(moved.detach() + self.step * gradient.sign(), least, most)
        return replace(batch, inputs=moved)

    def _inputs(self, batch: Batch) -> Tensor:
        inputs = batch.inputs.detach()
        if not inputs.is_floating_point():
            raise TypeError(f"inputs must be floating point, got {inputs.dtype}; convert them with .float()")
        if len(inputs) and not self.low <= float(inputs.min()) <= float(inputs.max()) <= self.high:
            raise ValueError(
                f"inputs must lie in the attack's range [{self.low:g}, {self.high:g}], got {float(inputs.min()):g} .. "
                f"{float(inputs.max()):g}; set low and high to the range of the data"
            )
        return inputs.clone()


class Adversary:
    """Adversarial training: gives each step of the one trainer the adversarial examples of its batch.

    A step is then one on ``mean_i max_{|d| <= epsilon} l_i(theta, x_i + d)``, whose gradient is that of the losses at
    the maximisers (Madry et al. 2018, section 3 and appendix A). A random start depends on the seed and the number of
    the step alone, so that a resumed run meets the same attacks.

    Args:
        attack: with ``epsilon = 0`` the batches pass unchanged.
        loss: the per-sample loss.
        seed: of the random starts, >= 0.
    """

    def __init__(self, attack: PGD, loss: SampleLoss, seed: int) -> None:
        self.attack, self.loss = attack, loss
        self.seed = _check.integer("seed", seed, low=0)

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> Batch:
        """Return the batch that `step`, counted from 0, is taken on."""
        return self.attack(model, batch, self.loss, generator=generator(self.seed, step))


def robust_accuracy(
    model: nn.Module, data: Batch, attack: PGD, head: Head, *, seed: int = 0, chunk: int = 1000
) -> float:
    """Return the share of `data` whose adversarial example `model` gets right, in evaluation mode.

    Args:
        model: left as it was.
        data: at least one sample.
        attack: for "PGD-50" its `steps` are 50.
        head: the loss that is driven up, and how outputs are read.
        seed: of the random starts.
        chunk: samples attacked at once.

    Raises:
        ValueError: no samples; else as `PGD`.
    """
    if not len(data):
        raise ValueError("data has no samples; accuracy is not defined")
    generator = torch.Generator().manual_seed(seed)
    right = 0
    with evaluating(model):
        for part in data.chunks(chunk):
            attacked = attack(model, part, head.loss, generator=generator)
            with torch.no_grad():
                right += int((head.predict(model(attacked.inputs)) == part.targets).sum())
    return right / len(data)
