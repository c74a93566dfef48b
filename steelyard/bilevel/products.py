"""One minibatch's gradient, Hessian-vector product and derivative by the weights along a direction, together."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steelyard.bilevel.batch import Batch
from steelyard.bilevel.float64 import batch_in_float64
from steelyard.bilevel.objective import WeightedLoss

__all__ = ["Products", "check_second_derivatives", "gradient_of", "inner_gradient", "products"]

_MISSING = "the model or the loss has an operator without a right second derivative"
_REMEDY = "exchange it, or take F2SA, which needs none"
_LENGTH = 1e-6  # of the difference; kinks of ReLU are rarely within
_APART, _NOISE = 1e-3, 1e-6


class Products(NamedTuple):
    """What one minibatch says of the inner loss G at theta, along a direction v of theta.

    Attributes:
        loss: G itself, a scalar.
        gradient: dG / d theta, a tensor a parameter.
        curvature: (d^2 G / d theta^2) v, a tensor a parameter.
        tangents: ``(batch,)`` d <dG / d theta, v> / d w_i.
    """

    loss: Tensor
    gradient: tuple[Tensor, ...]
    curvature: tuple[Tensor, ...]
    tangents: Float[Tensor, " batch"]


def products(
    model: nn.Module,
    objective: WeightedLoss,
    batch: Batch,
    weight: Float[Tensor, " batch"],
    parameters: Sequence[Tensor],
    direction: Sequence[Tensor],
) -> Products:
    """Return all four from one forward and one double backward pass.

    <dG / d theta, v> is a function of theta and of the weights: its derivative by theta is H v, and its derivative by
    the weights, which the forward pass is given as leaves, is what each sample does to the gradient along v.

    Args:
        model: its `parameters` are theta; it is evaluated in the mode that it is in.
        objective: G.
        batch: the minibatch.
        weight: ``(batch,)`` of its samples.
        parameters: theta.
        direction: v, a tensor a parameter.

    Raises:
        NotImplementedError: the model or the loss has an operator that says that it has no second derivative. (Some do
            not say so: `check_second_derivatives`.)
    """
    with torch.enable_grad():
        leaves = weight.detach().requires_grad_()
        value = objective(model, batch, leaves)
        gradient = gradient_of(value, parameters, create_graph=True)
        along = sum(((one * v).sum() for one, v in zip(gradient, direction, strict=True)), value.new_zeros(()))
        try:
            *curvature, tangents = gradient_of(along, [*parameters, leaves])
        except RuntimeError as error:
            if "derivative" not in str(error) and "differentiate" not in str(error):
                raise
            raise NotImplementedError(f"{_MISSING} ({error}): {_REMEDY}") from error
    return Products(value.detach(), tuple(one.detach() for one in gradient), tuple(curvature), tangents)


def check_second_derivatives(
    model: nn.Module,
    objective: WeightedLoss,
    batch: Batch,
    weight: Float[Tensor, " batch"],
    parameters: Sequence[Tensor],
) -> None:
    """Compare `products` along a random direction with central differences, on a copy in float64.

    An operator marked ``once_differentiable`` gives a second derivative of 0 without a word, and torch has some that
    are wrong. A model that cannot be evaluated in float64 is passed over.

    Raises:
        NotImplementedError: they differ.
    """
    model, own = copy.deepcopy((model, list(parameters)))
    model = model.double()
    generator = torch.Generator().manual_seed(0)
    v = [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.device) for p in own]
    weight, batch = weight.detach().double(), batch_in_float64(batch)

    def gradient(length: float, w: Tensor = weight) -> list[Tensor]:
        torch.manual_seed(0)  # dropout draws the same noise
        _moved(own, v, length)
        _, _, found = inner_gradient(model, objective, batch, w, own)
        _moved(own, v, -length)
        return list(found)

    with torch.random.fork_rng(devices=sorted({p.get_device() for p in own if p.is_cuda})):
        try:
            up, down, plain, unweighted = (
                gradient(length, w)
                for length, w in ((_LENGTH, weight), (-_LENGTH, weight), (0.0, weight), (0.0, 0.0 * weight))
            )
        except RuntimeError:
            return
        torch.manual_seed(0)
        found = products(model, objective, batch, weight, own, v)
    differences = [(one - other) / (2 * _LENGTH) for one, other in zip(up, down, strict=True)]
    apart = _norm([one - other for one, other in zip(found.curvature, differences, strict=True)])
    # G is linear in the weights, so sum w_i t_i is what they add to <dG / d theta, v>.
    linear = sum(float(((one - other) * d).sum()) for one, other, d in zip(plain, unweighted, v, strict=True))
    left = abs(float(weight @ found.tangents) - linear)
    if apart > _APART * _norm(differences) + _NOISE or left > _APART * abs(linear) + _NOISE:
        raise NotImplementedError(
            f"{_MISSING}: along a random direction it is {apart:.2g} from differences of the gradient, whose size is "
            f"{_norm(differences):.2g}, and the samples' share {left:.2g} from {linear:.2g}: {_REMEDY}"
        )


def inner_gradient(
    model: nn.Module,
    objective: WeightedLoss,
    batch: Batch,
    weight: Float[Tensor, " batch"],
    parameters: Sequence[Tensor],
) -> tuple[Tensor, Float[Tensor, " batch"], tuple[Tensor, ...]]:
    """Return G, the samples' losses ``(batch,)`` and dG / d theta, from one forward and one backward pass."""
    with torch.enable_grad():
        losses = objective.sample_losses(model, batch)
        value = objective.reduce(model, losses, weight.detach())
        return value.detach(), losses.detach(), gradient_of(value, parameters)


@torch.no_grad()
def _moved(parameters: Sequence[Tensor], direction: Sequence[Tensor], length: float) -> None:
    for p, one in zip(parameters, direction, strict=True):
        p.add_(one, alpha=length)


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(one.double().square().sum()) for one in tensors))


def gradient_of(value: Tensor, at: Sequence[Tensor], create_graph: bool = False) -> tuple[Tensor, ...]:
    """Return d value / d tensor for each of `at`, 0 where there is no path; dense, also of a sparse embedding."""
    found = torch.autograd.grad(value, at, create_graph=create_graph, allow_unused=True, materialize_grads=True)
    return tuple(one.to_dense() if one.is_sparse else one for one in found)
