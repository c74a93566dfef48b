"""Small problems of two environments, and an inner run on them."""

from functools import partial

import torch
import torch.nn.functional as F

from steelyard.bilevel import Batch, WeightedLoss
from steelyard.reweight import InnerRun

CROSS_ENTROPY = partial(F.cross_entropy, reduction="none")


def spurious(n=200, seed=0, dtype=torch.float64):
    """Two environments, Gaussian features: 0 has the label's sign for 80% in both, 1 for 95% and for 75%.

    Returns:
        The samples, and a ``(n,)`` bool tensor: the spurious feature agrees with the label.
    """
    g = torch.Generator().manual_seed(seed)
    environment = torch.arange(n) % 2
    sign = torch.where(torch.rand(n, generator=g) < 0.5, 1, -1)
    core = torch.where(torch.rand(n, generator=g) < 0.8, sign, -sign)
    agrees = torch.rand(n, generator=g) < torch.where(environment == 0, 0.95, 0.75)
    inputs = torch.stack([core, torch.where(agrees, sign, -sign)], 1) + 0.5 * torch.randn(n, 2, generator=g)
    inputs = inputs.to(dtype)
    return Batch.of(inputs, (sign > 0).long(), environment=environment), agrees


def shortcut(n=800, seed=0):
    """Two environments, as Colored MNIST: feature 0 has the label's sign for 75%, 1 for 90% and for 80%, little noise.

    Returns:
        The samples, and a ``(n,)`` bool tensor: the shortcut agrees with the label.
    """
    g = torch.Generator().manual_seed(seed)
    environment = torch.arange(n) % 2
    sign = torch.where(torch.rand(n, generator=g) < 0.5, 1.0, -1.0)
    core = torch.where(torch.rand(n, generator=g) < 0.75, sign, -sign)
    agrees = torch.rand(n, generator=g) < torch.where(environment == 0, 0.9, 0.8)
    inputs = torch.stack([core, torch.where(agrees, sign, -sign)], 1) + 0.1 * torch.randn(n, 2, generator=g)
    return Batch.of(inputs.double(), (sign > 0).long(), environment=environment), agrees


def linear_run(steps=30, dtype=torch.float64, lr=1.0, **options):
    """Logistic regression by SGD with momentum from one random start."""
    return InnerRun(
        lambda: torch.nn.Linear(2, 2, dtype=dtype),
        partial(torch.optim.SGD, lr=lr, momentum=0.9),
        WeightedLoss(CROSS_ENTROPY),
        steps,
        **options,
    )
