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

How much dy/dd depends on d itself decides what a rounding of d does to it:

    d^2y/dd^2 = [-2 e D' - (e d + f m) (D'' - 2 D'^2 / D)] / D^2,
    D' = sigma d / (r kappa),   D'' = sigma rho n / (r^3 kappa).

With a = sqrt(sigma) / kappa, |D'| <= a and |D''| <= sigma / (r kappa), and for moments that are averages of gradients
|e d + f m| / D is a small multiple of e / a, so that it stays below 10 e a / D^2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Move", "adaptive"]


class Move(NamedTuple):
    """Derivatives of y, elementwise: by the gradient, by m, and by x = the (new) second moment.

    `curvature` bounds the derivative of `by_gradient` by d, signs aside; 0 where d is 0, since an exact zero has no
    rounding error.
    """

    by_gradient: Tensor
    by_first: Tensor | None = None
    by_second: Tensor | None = None
    curvature: Tensor | None = None


def adaptive(
    d: Tensor,
    first: Tensor | None,
    second: Tensor | None,
    *,
    e: float,
    f: float,
    rho: float,
    sigma: float,
    kappa: float,
    eps: float,
    frozen: Tensor | None = None,
    last: bool = False,
    sensitive: bool = False,
) -> Move:
    """Return the derivatives of y = (e d + f m) / (sqrt(x) / kappa + eps), with x = rho n + sigma d^2.

    Args:
        d: the gradient, any shape; the other tensors share it.
        first: m before the step, or None where f = 0 or m = 0.
        second: n before the step, or None where it is 0, and `first` with it.
        e, f, rho, sigma, kappa, eps: as in the module's text.
        frozen: where AMSGrad's running maximum is the larger one, that maximum, and NaN elsewhere: x is then a
            constant there, and `by_second` is the derivative by it.
        last: leave out `by_first` and `by_second`.
        sensitive: give `curvature` too.
    """
    a = math.sqrt(sigma) / kappa
    if second is None and last and frozen is None:  # r = sqrt(sigma) |d|, and the fraction over r is 0
        squared = d.abs().mul_(a).add_(eps).square_()
        return Move(e * eps / squared, curvature=_curvature(d, squared, 10 * e * a) if sensitive else None)
    n = torch.zeros_like(d) if second is None else second
    x = (n * rho).addcmul_(d, d, value=sigma)
    live = None
    if frozen is not None:
        live = frozen.isnan()
        x = torch.where(live, x, frozen)
    r = x.sqrt_()
    scale = (r / kappa).add_(eps)
    squared = scale.square()
    cross = n * (e * rho / kappa)
    if first is not None:
        cross.addcmul_(first, d, value=-sigma * f / kappa)
    # Where r = 0 so are n and d, and with them the numerator.
    by_gradient = cross.div_(r + torch.finfo(r.dtype).tiny).add_(e * eps).div_(squared)
    if live is not None:
        by_gradient = torch.where(live, by_gradient, e / scale)
    curvature = _curvature(d, squared, 10 * e * a) if sensitive else None
    if last:
        return Move(by_gradient, curvature=curvature)
    numerator = e * d if first is None else (e * d).add_(first, alpha=f)
    by_second = numerator.div_(squared).div_(r).mul_(-0.5 / kappa).masked_fill_(r == 0, 0)
    return Move(by_gradient, f / scale, by_second, curvature)


def _curvature(d: Tensor, squared: Tensor, factor: float) -> Tensor:
    return d.sign().div_(squared).mul_(factor)  # (comparisons take ten times as long)
