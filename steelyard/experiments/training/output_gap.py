"""What each environment would gain by a scale and a bias of its own on a model's logit, found exactly."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from steelyard import reweight
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.objective import SampleLoss

__all__ = ["OutputGap", "scale_and_bias"]

_STEPS, _HALVINGS = 30, 20


class OutputGap(reweight.Risk):
    """``R - R_env``: the mean loss of one logit z less that of ``a_e z + b_e``, the best a_e and b_e of environment e.

    Never negative, and zero where no environment gains by a calibration of its own. By Danskin's theorem the gradient
    is the one with a_e and b_e held. The loss must be binary cross-entropy of a logit.
    """

    def __call__(self, outputs: Shaped[Tensor, "n *outputs"], batch: Batch, loss: SampleLoss) -> Float[Tensor, ""]:
        """Return the gap, a scalar with a graph to `outputs` ``(n, 1)``.

        Raises:
            ValueError: no environment ids, or more than one logit.
        """
        if batch.environment is None:
            raise ValueError("this risk needs environment ids, but batch.environment is None")
        if outputs.ndim != 2 or outputs.shape[1] != 1:
            raise ValueError(f"this risk is of one logit, outputs (n, 1), got {tuple(outputs.shape)}")
        best = outputs.new_zeros(len(outputs), 2)
        for environment in batch.environment.unique():
            member = batch.environment == environment
            best[member] = scale_and_bias(outputs[member, 0].detach(), batch.targets[member]).to(best)
        own = best[:, :1] * outputs + best[:, 1:]
        return (loss(outputs, batch.targets) - loss(own, batch.targets)).mean()


def scale_and_bias(logits: Float[Tensor, " n"], targets: Int[Tensor, " n"]) -> Float[Tensor, " 2"]:
    """Return a and b that minimise the mean binary cross-entropy of ``a z + b``, by Newton's method from (1, 0).

    A step is halved until the loss falls, so the result is never worse than (1, 0). Samples that a threshold on z
    separates have no minimum: a then is large.

    Example:
        >>> scale_and_bias(torch.zeros(4), torch.tensor([1, 1, 1, 0]))[1]  # log 3
        tensor(1.0986, dtype=torch.float64)
    """
    design = torch.stack([logits.double(), torch.ones_like(logits, dtype=torch.float64)], 1)
    labels = targets.double()
    ridge = 1e-9 * torch.eye(2, dtype=torch.float64, device=design.device)  # a constant logit leaves a open

    def value(at: Tensor) -> Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(design @ at, labels)

    found = torch.tensor([1.0, 0.0], dtype=torch.float64, device=design.device)
    lowest = value(found)
    for _ in range(_STEPS):
        probability = torch.sigmoid(design @ found)
        slope = design.T @ (probability - labels) / len(labels)
        curvature = (design.T * (probability * (1 - probability))) @ design / len(labels)
        step = torch.linalg.solve(curvature + ridge, slope)
        for halving in range(_HALVINGS):
            moved = found - step / 2**halving
            if bool((lower := value(moved)) < lowest):
                break
        else:
            break
        fallen, found, lowest = lowest - lower, moved, lower
        if float(fallen) < 1e-12:
            break
    return found
