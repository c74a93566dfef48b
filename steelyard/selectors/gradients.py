"""Scores by gradients: expected gradient length, gradient norms at known labels, distance to the decision boundary."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.selectors import _inputs

__all__ = ["deepfool", "dfal", "el2n", "expected_gradient_length", "expected_input_gradient_length", "gradient_norm"]

Logits = Callable[[Tensor], Tensor]


def expected_gradient_length(
    probabilities: Float[Tensor, "n classes"] | Numbers, embeddings: Float[Tensor, "n features"] | Numbers
) -> Float[Tensor, " n"]:
    """EGL of the output layer: sum_y p_y ||(p - e_y) x h|| = |h| sum_y p_y ||p - e_y||; higher = picked first.

    Args:
        probabilities: ``(n, classes)`` softmax outputs.
        embeddings: ``(n, features)`` inputs of the output layer (its bias is left out).

    Returns:
        ``(n,)`` >= 0. O(n (classes + features)).

    Raises:
        ValueError: NaN, rows that do not sum to 1, another n in `embeddings`. TypeError: integers.

    References:
        B. Settles, M. Craven, S. Ray, Multiple-instance active learning, NIPS 2007, for the last layer.

    Example:
        >>> expected_gradient_length(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([[2.0], [2.0]]))
        tensor([1.4142, 0.0000])
    """
    p = _inputs.distributions("probabilities", probabilities)
    h = _inputs.embeddings("embeddings", embeddings)
    _check.same_length(probabilities=p, embeddings=h)
    wide = p.double()  # in which the squares of small chances are not 0
    lengths = (_others(wide.square()) + (1 - wide).square()).sqrt()
    return (wide * lengths).sum(1).to(p.dtype) * torch.linalg.vector_norm(h, dim=1)


def expected_input_gradient_length(model: Logits, inputs: Shaped[Tensor, "n *shape"] | Numbers) -> Float[Tensor, " n"]:
    """EGL by the inputs: sum_y p_y ||d CE(x, y) / d x||_2; higher = picked first.

    Args:
        model: inputs ``(n, ...)`` -> logits ``(n, classes)``, row by row: eval mode where there is BatchNorm.
        inputs: ``(n, ...)`` floating.

    Returns:
        ``(n,)`` >= 0. One forward and `classes` backward passes, memory for ``(n, classes, ...)``: pass chunks.

    Raises:
        ValueError: NaN, no sample, or logits that are not ``(n, classes)``.

    References:
        Settles et al., NIPS 2007, with the input-gradient norm of Guo et al., Robust Active Learning, 2021.

    Example:
        >>> expected_input_gradient_length(lambda x: torch.cat([x, -x], 1), torch.tensor([[0.0]]))
        tensor([1.])
    """
    logits, jacobian = _jacobian(model, inputs)
    p, gradients = logits.double().softmax(1)[:, :, None], jacobian.double()
    # The mean gradient less that of a class, which for a confident row are nearly the same: without that class in it.
    lengths = torch.linalg.vector_norm(_others(p * gradients) - _others(p) * gradients, dim=2)
    return (p[:, :, 0] * lengths).sum(1).to(logits.dtype)


def el2n(
    probabilities: Float[Tensor, "*models n classes"] | Numbers, labels: Int[Tensor, " n"] | Numbers
) -> Float[Tensor, " n"]:
    """EL2N: ||p - e_y||_2, averaged over models where there are several; higher = harder, or mislabelled.

    It is the foil of `rank_disagreement`: label corruption drives it up.

    Args:
        probabilities: ``(n, classes)`` or ``(models, n, classes)`` softmax outputs.
        labels: ``(n,)`` class ids.

    Returns:
        ``(n,)`` in [0, sqrt(2)].

    Raises:
        ValueError: NaN, rows that do not sum to 1, class ids out of range, another n in `labels`. TypeError: integers.

    References:
        M. Paul, S. Ganguli, G. K. Dziugaite, Deep learning on a data diet, NeurIPS 2021.

    Example:
        >>> el2n(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
        tensor([0.0000, 1.4142])
    """
    given = _check.tensor("probabilities", probabilities)
    dims = ("models", "n", "classes")[3 - given.ndim :] if given.ndim in (2, 3) else ("n", "classes")
    p = _inputs.distributions("probabilities", given, dims)
    targets = _inputs.class_ids("labels", labels, p.shape[-1])
    if p.shape[-2] != targets.shape[0]:
        raise ValueError(f"labels has {targets.shape[0]} entries, but probabilities is {tuple(p.shape)}")
    onehot = torch.nn.functional.one_hot(targets, p.shape[-1])
    error = torch.linalg.vector_norm(p - onehot, dim=-1)
    return error if error.ndim == 1 else error.mean(0)


def gradient_norm(
    probabilities: Float[Tensor, "n classes"] | Numbers,
    embeddings: Float[Tensor, "n features"] | Numbers,
    labels: Int[Tensor, " n"] | Numbers,
) -> Float[Tensor, " n"]:
    """Return ||p - e_y||_2 |h|, the norm of the output layer's gradient (without bias): GraNd of that layer.

    Args:
        probabilities: ``(n, classes)``. embeddings: ``(n, features)``. labels: ``(n,)`` class ids.

    Raises:
        ValueError, TypeError: as `el2n`; another n in `embeddings`.

    References:
        Paul et al., NeurIPS 2021; A. Katharopoulos, F. Fleuret, Not all samples are created equal, ICML
        2018, for the importance sampling by it.

    Example:
        >>> gradient_norm(torch.tensor([[0.0, 1.0]]), torch.tensor([[3.0, 4.0]]), torch.tensor([0]))
        tensor([7.0711])
    """
    h = _inputs.embeddings("embeddings", embeddings)
    _check.same_length(probabilities=probabilities, embeddings=h)
    return el2n(probabilities, labels) * torch.linalg.vector_norm(h, dim=1)


def dfal(
    model: Logits, inputs: Shaped[Tensor, "n *shape"] | Numbers, *, steps: int = 50, overshoot: float = 0.02
) -> Float[Tensor, " n"]:
    """DFAL: minus the norm of DeepFool's perturbation, about the distance to the boundary; higher = picked first.

    Args:
        model, inputs, steps, overshoot: see `deepfool`.

    Returns:
        ``(n,)`` <= 0; the least finite number where `steps` were not enough or the gradient is zero (picked last).

    Raises:
        ValueError: NaN, no sample, steps < 1, overshoot < 0, or logits that are not ``(n, classes)``.

    References:
        M. Ducoffe, F. Precioso, Adversarial active learning for deep networks: a margin based approach, 2018.

    Example:
        >>> dfal(lambda x: torch.cat([x, -x], 1), torch.tensor([[3.0], [-0.5]]), overshoot=0.0)
        tensor([-3.0000, -0.5000])
    """
    perturbation, crossed = deepfool(model, inputs, steps=steps, overshoot=overshoot)
    norm = torch.linalg.vector_norm(perturbation.flatten(1), dim=1)
    return torch.where(crossed, -norm, torch.finfo(norm.dtype).min)


def deepfool(
    model: Logits, inputs: Shaped[Tensor, "n *shape"] | Numbers, *, steps: int = 50, overshoot: float = 0.02
) -> tuple[Shaped[Tensor, "n *shape"], Bool[Tensor, " n"]]:
    """DeepFool: step to the nearest boundary of the linearised model until the prediction changes.

    Args:
        model: inputs ``(n, ...)`` -> logits ``(n, classes)``, row by row: eval mode where there is BatchNorm.
        inputs: ``(n, ...)`` floating.
        steps: at most. overshoot: eta; what is tested is x + (1 + eta) r.

    Returns:
        r ``(n, ...)``, the sum of the steps (without the overshoot: for a linear model the exact distance), and whether
        the prediction changed ``(n,)``. One forward and `classes` backward passes a step, of the samples still inside,
        memory for ``(n, classes, ...)``: pass chunks.

    Raises:
        ValueError: NaN, no sample, steps < 1, overshoot < 0, or logits that are not ``(n, classes)``.

    References:
        S.-M. Moosavi-Dezfooli, A. Fawzi, P. Frossard, DeepFool, CVPR 2016, Algorithm 2 (Euclidean norm).
        Departure: a sample counts as across once another class is at least level, so that the step that lands on the
        boundary (overshoot 0, or rounding) does not start another one.
    """
    steps = _check.integer("steps", steps, low=1)
    overshoot = _check.in_range("overshoot", overshoot, low=0)
    inputs = _check.floats("inputs", inputs)
    total = torch.zeros_like(inputs)
    inside = torch.arange(inputs.shape[0], device=inputs.device)
    home = torch.empty(0, dtype=torch.long, device=inputs.device)
    for step in range(steps + 1):
        moved = inputs[inside] + (1 + overshoot) * total[inside]
        logits, jacobian = _jacobian(model, moved)
        if step == 0:
            home = logits.argmax(1)
        mine = home[inside, None]
        lead = logits.gather(1, mine) - logits
        # Level up to the rounding of the logits and of the point, which the gradients carry into them. The point is a
        # sum, and may be far smaller than what it is the sum of.
        terms = inputs[inside].flatten(1).norm(dim=1) + (1 + overshoot) * total[inside].flatten(1).norm(dim=1)
        size = jacobian.norm(dim=2).amax(1) * terms
        slack = 4 * torch.finfo(logits.dtype).eps * (logits.abs().amax(1) + size)
        lead.scatter_(1, mine, torch.inf)
        still = (lead.amin(1) > (slack if step else -1.0)).nonzero()[:, 0]
        if step == steps or not still.numel():
            inside = inside[still]
            break
        inside, lead, jacobian, mine = inside[still], lead[still], jacobian[still], mine[still]
        normal = jacobian - jacobian.gather(1, mine[:, :, None].expand(-1, -1, jacobian.shape[2]))
        squared = normal.square().sum(2)
        distance = torch.where(squared > 0, lead / squared.sqrt(), torch.inf)
        nearest = distance.argmin(1, keepdim=True)
        push = lead.gather(1, nearest) / squared.gather(1, nearest)
        move = push * normal.gather(1, nearest[:, :, None].expand(-1, -1, normal.shape[2])).squeeze(1)
        move = torch.where(distance.gather(1, nearest).isfinite(), move, 0)  # a zero gradient: nowhere to go
        total[inside] += move.view_as(total[inside])
    crossed = torch.ones(inputs.shape[0], dtype=torch.bool, device=inputs.device)
    crossed[inside] = False
    return total, crossed


def _others(values: Tensor) -> Tensor:
    """Return for each class the sum over the other classes ``(n, classes, ...)``, which nothing cancels in."""
    before = values.cumsum(1).roll(1, 1)
    after = values.flip(1).cumsum(1).roll(1, 1)
    before[:, 0] = after[:, 0] = 0
    return before + after.flip(1)


def _jacobian(model: Logits, inputs: Tensor | Numbers) -> tuple[Tensor, Tensor]:
    """Return logits ``(n, classes)`` and their gradients by the inputs ``(n, classes, numel of one input)``."""
    inputs = _check.floats("inputs", inputs)
    if not inputs.numel():
        raise ValueError(f"inputs is empty: its shape is {tuple(inputs.shape)}")
    with torch.enable_grad():
        x = _check.finite("inputs", inputs.detach()).clone().requires_grad_()
        logits = model(x)
        if logits.ndim != 2 or logits.shape[0] != x.shape[0] or logits.shape[1] < 2:
            raise ValueError(f"model must return (n, classes) with n = {x.shape[0]}, got {tuple(logits.shape)}")
        rows = [
            torch.autograd.grad(logits[:, c].sum(), x, retain_graph=True, materialize_grads=True)[0].flatten(1)
            for c in range(logits.shape[1])
        ]
    return logits.detach(), torch.stack(rows, dim=1)
