"""The one derivative that Adam, AMSGrad, NAdam, RMSprop and Adagrad share, without cancellation.

All of them move a parameter by

    y = (e d + f m) / D,    D = r / kappa + eps,    r = sqrt(x),    x = rho n + sigma d^2

with d the gradient (weight decay included), m and n the moments before the step and numbers e, f, rho, sigma,
kappa. Written as printed in most code, dy/dd = e/D - (e d + f m) sigma d / (r kappa D^2) subtracts two numbers
that agree to all digits at a cold start (n = m = 0), where the true value is the tiny e eps / D^2. Putting both
over one denominator, the terms in d^2 cancel by algebra instead of by rounding:

    dy/dd = [e eps + (e rho n - sigma f m d) / (r kappa)] / D^2.

Where r = 0 every gradient so far was zero; then dy/dd = e / eps, and nothing flows through x, because
dx/dd = 2 sigma d = 0 there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Move", "adaptive"]


class Move(NamedTuple):
    """Derivatives of y, elementwise: by the gradient, by m, and by x = the (new) second moment."""

    by_gradient: Tensor
    by_first: Tensor
    by_second: Tensor


def adaptive(
    d: Tensor,
    first: Tensor | None,
    second: Tensor,
    *,
    e: float,
    f: float,
    rho: float,
    sigma: float,
    kappa: float,
    eps: float,
    frozen: Tensor | None = None,
) -> Move:
    """Return the derivatives of y = (e d + f m) / (sqrt(x) / kappa + eps), with x = rho n + sigma d^2.

    Args:
        d: the gradient, any shape; the other tensors share it.
        first: m before the step, or None where f = 0.
        second: n before the step.
        e, f, rho, sigma, kappa, eps: as in the module's text.
        frozen: where AMSGrad's running maximum is the larger one, that maximum, and NaN elsewhere: x is then a
            constant there, and `by_second` is the derivative by it.
    """
    x = second * rho + sigma * d.square()
    live = torch.ones_like(d, dtype=torch.bool)
    if frozen is not None:
        live = frozen.isnan()
        x = torch.where(live, x, frozen)
    r = x.sqrt()
    safe = torch.where(r > 0, r, torch.ones_like(r))
    scale = r / kappa + eps
    numerator = e * d if first is None else e * d + f * first
    cross = e * rho * second if first is None else e * rho * second - sigma * f * first * d
    through_x = torch.where(r > 0, cross / (safe * kappa), torch.zeros_like(r))
    by_gradient = torch.where(live & (r > 0), (e * eps + through_x) / scale.square(), e / scale)
    by_second = torch.where(r > 0, -numerator / (2 * kappa * safe * scale.square()), torch.zeros_like(r))
    return Move(by_gradient, f / scale, by_second)
