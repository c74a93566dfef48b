"""Rademacher complexity of neural networks: an upper bound read off the module, and a lower estimate by maximisation.

The two sides of one unknown number. Only the upper one makes Theorem 1 a certificate, and for nets of any size it is
far above the loss range; the lower one tells whether a better upper bound could help at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call, vmap

from steelyard._support import _check
from steelyard._support._modules import evaluating
from steelyard.theory.estimate import Estimate

__all__ = ["golowich_bound", "network_complexity_lower"]

_TRANSPARENT = (
    nn.Identity,
    nn.Flatten,
    nn.Dropout,
)  # linear with norm <= 1 in evaluation mode, no parameters


def golowich_bound(
    network: nn.Module,
    radius: float,
    n: int,
    *,
    caps: Sequence[float] | None = None,
    bias_caps: Sequence[float] | None = None,
) -> Estimate:
    """Return B (sqrt(2 log(2) T) + 1) prod_l M_l / sqrt(n), an upper estimate of R^_n of the network's OUTPUT class.

    The class: networks of this shape whose T weight matrices have Frobenius norms of at most M_l, on inputs with ||x||
    <= B. The output must be one real number, the activations 1-Lipschitz and positively homogeneous. Two steps that
    section 6.3 of the paper leaves out:

    - It is a bound for f, not for the loss class in the theorem's R^_n: `contracted` makes the step, and needs a
      Lipschitz loss. For the 0-1 loss the printed inequality is false: shrink all the weights, and its right side goes
      to 0 while the signs of f, and the complexity, stay (`tests/theory/test_networks.py`).
    - Biases: an affine layer is a linear one on (a, 1), so below the last biased layer k the norms are those of [[W,
      b], [0, 1]], at layer k of [W, b], and B becomes sqrt(B^2 + 1).

    Args:
        network: nn.Sequential (nested ones too) of Linear, ReLU, LeakyReLU with |slope| <= 1, Identity, Flatten,
            Dropout.
        radius: B, in the units of the inputs. n: samples.
        caps: M_l of each Linear, in order; None reads them off the network as it stands. The theorem needs Theta fixed
            before the data: for a trained network give the caps chosen beforehand.
        bias_caps: norms of the biases, in the order of the Linears (0 where there is none); None reads them off.

    Raises:
        ValueError: a layer is not covered (its name is in the message), the network exceeds a cap, or radius < 0.

    References:
        N. Golowich, A. Rakhlin, O. Shamir, Size-Independent Sample Complexity of Neural Networks, COLT 2018,
        Theorem 1.

    Example:
        >>> layer = nn.Linear(3, 1, bias=False)
        >>> _ = nn.init.constant_(layer.weight, 1 / 3**0.5)
        >>> round(golowich_bound(layer, radius=1.0, n=100).value, 4)      # (sqrt(2 log 2) + 1) / 10
        0.2177
    """
    radius = _check.in_range("radius", radius, low=0.0)
    n = _check.integer("n", n, low=1)
    layers = _linear_layers(network)
    weights = _norms("caps", [float(layer.weight.detach().double().norm()) for _, layer in layers], caps)
    biases = _norms(
        "bias_caps",
        [0.0 if layer.bias is None else float(layer.bias.detach().double().norm()) for _, layer in layers],
        bias_caps,
    )
    last_biased = max((place for place, (_, layer) in enumerate(layers) if layer.bias is not None), default=-1)
    product = 1.0
    for place, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        product *= math.sqrt(weight**2 + bias**2 + (1.0 if place < last_biased else 0.0))
    reach = math.hypot(radius, 1.0) if last_biased >= 0 else radius
    depth = len(layers)
    value = reach * (math.sqrt(2 * math.log(2) * depth) + 1) * product / math.sqrt(n)
    fixed = "given caps" if caps is not None else "norms read off the network: valid if Theta was fixed beforehand"
    return Estimate(value, "upper", note=f"Golowich et al., depth {depth}, norm product {product:.4g}; {fixed}")


def network_complexity_lower(
    network: nn.Module,
    inputs: Float[Tensor, "n *features"],
    targets: Shaped[Tensor, "n *target"],
    sample_loss: Callable[[Tensor, Tensor], Tensor],
    *,
    draws: int,
    steps: int,
    learning_rate: float = 0.1,
    caps: Mapping[str, float] | None = None,
    generator: torch.Generator,
) -> Estimate:
    """Return a lower estimate of R^_n of the loss class of a network by projected gradient ascent.

    For each draw of signs, (1/n) sum_i xi_i l_i(theta) is raised over Theta = {every parameter tensor within its cap}
    by Adam from a random point of Theta; the best value seen is at most the supremum over Theta. The mean over draws is
    a lower estimate with a Monte Carlo error. All draws run at once (`torch.func.vmap`).

    Args:
        network: left unchanged; run in evaluation mode without its buffers being updated.
        inputs, targets: ``(n, ...)``. sample_loss: (outputs, targets) -> ``(n,)``.
        draws: sign vectors, at least 2. steps: ascent steps.
        learning_rate: Adam's step, in units of the root mean square entry of a tensor at its cap.
        caps: Frobenius norm allowed, by parameter name; missing names and None: the norm the network has now.
        generator: source of signs and starting points.

    Cost: draws x steps forward and backward passes over the n samples.
    """
    draws = _check.integer("draws", draws, low=2)
    steps = _check.integer("steps", steps, low=1)
    n = inputs.shape[0]
    norms = {name: float(value.detach().norm()) for name, value in network.named_parameters()}
    limits = norms | dict(caps or {})
    if set(limits) != set(norms):
        raise ValueError(f"caps names parameters that the network lacks: {sorted(set(limits) - set(norms))}")
    buffers = dict(network.named_buffers())
    signs = torch.randint(0, 2, (draws, n), generator=generator).to(inputs.dtype) * 2 - 1

    def mean_loss(parameters: Mapping[str, Tensor], xi: Tensor) -> Tensor:
        outputs = functional_call(network, {**parameters, **buffers}, (inputs,))
        return (xi * sample_loss(outputs, targets)).mean()

    stacked: dict[str, Tensor] = {
        name: nn.Parameter(torch.randn(draws, *value.shape, generator=generator, dtype=value.dtype))
        for name, value in network.named_parameters()
    }
    groups = [
        {"params": [value], "lr": learning_rate * limits[name] / math.sqrt(value[0].numel())}
        for name, value in stacked.items()
    ]
    optimizer = torch.optim.Adam(groups, maximize=True)
    best = torch.full((draws,), -math.inf, dtype=inputs.dtype)
    with evaluating(network):
        for _ in range(steps):
            _project(stacked, limits)
            values = vmap(mean_loss)(stacked, signs)
            best = torch.maximum(best, values.detach())
            optimizer.zero_grad()
            values.sum().backward()
            optimizer.step()
    spread = float(best.double().std()) / math.sqrt(draws)
    return Estimate(
        float(best.double().mean()), "lower", spread, f"maximisation, {steps} steps, {draws} draws of signs"
    )


def _project(stacked: Mapping[str, Tensor], limits: Mapping[str, float]) -> None:
    """Scale each draw's parameter tensor back to its Frobenius cap, in place."""
    with torch.no_grad():
        for name, value in stacked.items():
            norm = value.flatten(1).norm(dim=1).clamp_min(1e-30)
            value.mul_((limits[name] / norm).clamp_max(1.0).view(-1, *([1] * (value.dim() - 1))))


def _norms(name: str, actual: Sequence[float], caps: Sequence[float] | None) -> Sequence[float]:
    if caps is None:
        return actual
    if len(caps) != len(actual):
        raise ValueError(f"{name} needs one number for each of the {len(actual)} Linear layers, got {len(caps)}")
    for place, (norm, cap) in enumerate(zip(actual, caps, strict=True)):
        if norm > cap * (1 + 1e-6):
            raise ValueError(
                f"{name}[{place}] = {cap} is below the layer's norm {norm:.6g}: the network is not in Theta"
            )
    return caps


def _linear_layers(network: nn.Module) -> list[tuple[str, nn.Linear]]:
    """Return the Linear layers in order; ValueError that names the first layer the theorem does not cover."""
    found: list[tuple[str, nn.Linear]] = []
    after = ""
    for name, layer in _flat(network, ""):
        if isinstance(layer, nn.Linear):
            found.append((name, layer))
            after = ""
        elif isinstance(layer, nn.ReLU) or (isinstance(layer, nn.LeakyReLU) and abs(layer.negative_slope) <= 1):
            after = name
        elif not isinstance(layer, _TRANSPARENT):
            raise ValueError(
                f"layer {name!r} ({type(layer).__name__}) is not covered by the bound of Golowich et al.: "
                "it takes Linear layers with 1-Lipschitz, positively homogeneous activations (ReLU, "
                "LeakyReLU) in an nn.Sequential"
            )
    if not found:
        raise ValueError("the network has no Linear layer")
    name, last = found[-1]
    if last.out_features != 1:
        raise ValueError(f"layer {name!r} has {last.out_features} outputs: the bound is for one real output")
    if after:
        raise ValueError(f"layer {after!r} follows the last Linear layer: the output must be linear")
    return found


def _flat(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    if not isinstance(module, nn.Sequential):
        yield prefix or type(module).__name__, module
        return
    for name, child in module.named_children():
        yield from _flat(child, f"{prefix}.{name}" if prefix else name)
