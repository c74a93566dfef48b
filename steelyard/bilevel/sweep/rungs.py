"""The ways to d l_i along u of every sample, each a function of one question; `ladder` says in which order.

A way that cannot answer raises; which errors that may be is said here (`CANNOT`), once. What it answers is checked by
the ladder, for the first four differentiate the VALUE of the losses, and the run was led by what `backward` made of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import grad
from torch.utils.hooks import RemovableHandle

from steelyard.bilevel._forward_mode import jvp
from steelyard.bilevel.gradient_graph import GradientGraph
from steelyard.bilevel.replay import differentiate, dot, gradient, leaves_of
from steelyard.bilevel.step import Tensors
from steelyard.bilevel.sweep.from_record import row_products, tangents
from steelyard.bilevel.sweep.graph_record import Recording, Unusable
from steelyard.bilevel.sweep.layer_record import LayerRecord
from steelyard.bilevel.sweep.question import Question
from steelyard.bilevel.sweep.row_independence import separate

__all__ = [
    "CANNOT",
    "EXACT",
    "KEPT",
    "ROUNDED",
    "Curved",
    "Differences",
    "Rung",
    "curvature_rungs",
    "forward_over_reverse",
    "general",
    "loss_rungs",
]

CANNOT = (Unusable, RuntimeError, TypeError, ValueError, NotImplementedError, AssertionError)
"""What torch raises where an operator has no derivative, or a transformation no rule."""


EXACT = "reverse over reverse"
KEPT = "the kept graph"


class Rung(NamedTuple):
    """One way.

    Attributes:
        name: what `answered` says of it.
        answer: from a question (a piece of it) to its t_i ``(batch,)``; for a window of several steps to `Curved`.
        ordinary: it is the backward pass that the training takes: where that is not finite, nothing is.
        passing: that it cannot answer says nothing of the next call, and costs nothing to find out.
    """

    name: str
    answer: Callable[[Question], Any]
    ordinary: bool = False
    passing: bool = False


class Curved(NamedTuple):
    """What one step back needs: H u, by parameter; t_i ``(batch,)``; and the gradient that was met on the way."""

    product: Tensors
    tangents: Tensor
    gradient: Tensors


def _graph_of(question: Question) -> GradientGraph:
    graph = question.step.findings.graph
    if graph is None or not question.recorded:
        raise Unusable("the graph of the step's gradient was not kept")
    if not (graph.whole or graph.used):
        raise Unusable("the step's gradient was written to")
    return graph


def _kept_graph_alone(question: Question) -> Tensor:
    """The derivative of <u, gradient> by the factor of each loss, back through the graph of the training's gradient."""
    graph = _graph_of(question)
    found: tuple[Tensor, ...] = question.replay(
        lambda module: graph.along(question.direction, [graph.extra]), {**question.at, **graph.copies}, exactly=True
    )
    return found[0]


def _kept_graph(question: Question) -> Curved:
    """H u and the t_i back through that graph: the second half of reverse over reverse."""
    graph = _graph_of(question)
    *product, values = question.replay(
        lambda module: graph.along(question.direction, [*graph.copies.values(), graph.extra]),
        {**question.at, **graph.copies},
        exactly=True,
    )
    # (A parameter that joined later has no copy, and no gradient in this step.)
    nothing = {name: torch.zeros_like(one) for name, one in question.at.items() if name not in graph.copies}
    slope = {**nothing, **graph.slope()} if graph.whole else {}  # (the optimizer's, which was cleared in place)
    return Curved({**nothing, **dict(zip(graph.copies, product, strict=True))}, values, slope)


def _row_products(question: Question) -> Tensor:
    """One multiplication a layer, by the record of the training's own forward pass and what `backward` sent past."""
    forward_record = _record_of(question)
    if not question.step.findings.separable:
        raise Unusable("the samples couple, or random numbers were drawn")
    if isinstance(forward_record, LayerRecord):
        return forward_record.row_products(question.direction)
    if forward_record.losses not in forward_record.gradients:
        raise Unusable("no gradient has come by: backward has not run")
    if not separate(forward_record):
        raise Unusable("not all operators are known to keep the samples apart")
    with _without_autocast(question):
        return row_products(forward_record, question.at, question.direction)


def _recorded_forward(question: Question) -> Tensor:
    """A tangent pass over the record of the training's own forward pass: two multiplications a layer."""
    forward_record = _record_of(question)
    if isinstance(forward_record, LayerRecord):
        raise Unusable("of the forward pass the layers alone were kept")
    with _without_autocast(question):
        return tangents(forward_record, question.at, question.direction)


def _replayed_forward(question: Question) -> Tensor:
    """The same over the record of a replay: three. Autograd marks the path and saves nothing."""
    leaves = {name: value.detach().requires_grad_() for name, value in question.at.items()}
    with torch.enable_grad(), saved_tensors_hooks(_drop, _drop), Recording(leaves) as recording:
        losses = question.losses(leaves)
    forward_record = recording.forward_record(losses)
    if forward_record is None:
        raise Unusable(recording.trouble or "no record")
    with _without_autocast(question):
        return tangents(forward_record, question.at, question.direction)


def _torch_forward(question: Question) -> Tensor:
    """torch's own forward mode, which evaluates every operator again."""

    def losses(parameters: Tensors) -> Tensor:
        return question.losses(parameters)

    with torch.no_grad():
        found: Tensor = jvp(losses, (question.at,), (question.direction,))[1]
    return found.detach()


def _double_backward(question: Question) -> Tensor:
    """The derivative of <u, backward pass with cotangents c> by c: one pass for all samples, of what `backward` did."""

    def body(module: nn.Module) -> Tensor:
        losses = question.sample_losses(module)
        cotangents = torch.ones_like(losses, requires_grad=True)
        first = torch.autograd.grad(losses, list(leaves.values()), cotangents, create_graph=True, allow_unused=True)
        moving = [
            (g, question.direction[n]) for n, g in zip(leaves, first, strict=True) if g is not None and g.requires_grad
        ]
        if not moving:
            return torch.zeros_like(losses).detach()
        return torch.autograd.grad(
            [g for g, _ in moving], cotangents, [u for _, u in moving], allow_unused=True, materialize_grads=True
        )[0]

    leaves = leaves_of(question.run, question.at)
    found: Tensor = question.replay(body, leaves, composites=True)
    return found


def _ordinary_backward(question: Question) -> Tensor:
    """One backward pass a sample, as the training takes it: right for whatever it does. Slow."""

    def body(module: nn.Module) -> Tensor:
        losses = question.sample_losses(module)
        if not losses.requires_grad:
            return torch.zeros_like(losses)
        rows = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)
        found = [
            dot(differentiate(module, losses, leaves, row, retain_graph=number + 1 < len(rows)), question.direction)
            for number, row in enumerate(rows)
        ]
        return torch.stack(found).to(losses) if found else torch.zeros_like(losses).detach()

    leaves = leaves_of(question.run, question.at)
    found: Tensor = question.replay(body, leaves)
    return found.detach()


def _reverse_over_reverse(question: Question) -> Curved:
    """H u and the t_i, both from the derivative of <u, gradient of the loss + sum z_i l_i> at z = 0."""
    first: tuple[Tensor, ...] = ()

    def body(module: nn.Module) -> tuple[Tensor, ...]:
        nonlocal first
        losses = question.sample_losses(module)
        extra = torch.zeros_like(losses, requires_grad=True)
        total = question.reduce(module, losses) + (extra * losses).sum()
        first = torch.autograd.grad(
            total, list(leaves.values()), create_graph=True, allow_unused=True, materialize_grads=True
        )
        for hook in hooks:
            hook.remove()
        moving = [(g, question.direction[name]) for name, g in zip(leaves, first, strict=True) if g.requires_grad]
        if not moving:
            return (*(torch.zeros_like(value) for value in question.at.values()), torch.zeros_like(extra).detach())
        return torch.autograd.grad(
            [g for g, _ in moving],
            [*leaves.values(), extra],
            grad_outputs=[u for _, u in moving],
            allow_unused=True,
            materialize_grads=True,
        )

    hooks: list[RemovableHandle] = []
    leaves = leaves_of(question.run, question.at, hooks)
    *product, values = question.replay(body, leaves, composites=True)
    slope = {name: g.detach() for name, g in zip(leaves, first, strict=True)}
    return Curved(dict(zip(leaves, product, strict=True)), values, slope)


def general(question: Question, tensors: Sequence[Tensor]) -> tuple[Curved, tuple[Tensor, ...]]:
    """H u and the gradient of any objective (no t_i), and the derivative of <u, gradient> by `tensors`."""

    def body(module: nn.Module) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        step = question.step
        value = question.run.inner_loss(step, module)
        first = torch.autograd.grad(
            value, list(leaves.values()), create_graph=True, allow_unused=True, materialize_grads=True
        )
        for hook in hooks:
            hook.remove()
        moving = [(g, question.direction[name]) for name, g in zip(leaves, first, strict=True) if g.requires_grad]
        asked = [*leaves.values(), *tensors]
        if not moving:
            return first, tuple(torch.zeros_like(one).detach() for one in asked)
        found = torch.autograd.grad(
            [g for g, _ in moving], asked, [u for _, u in moving], allow_unused=True, materialize_grads=True
        )
        return first, found

    hooks: list[RemovableHandle] = []
    leaves = leaves_of(question.run, question.at, hooks)
    first, found = question.replay(body, leaves, composites=True)
    slope = {name: g.detach() for name, g in zip(leaves, first, strict=True)}
    product = dict(zip(leaves, found[: len(leaves)], strict=True))
    return Curved(product, next(iter(slope.values())).new_zeros(0), slope), found[len(leaves) :]


def forward_over_reverse(question: Question) -> Curved:
    """H u by forward over reverse, and the t_i of the same pass.

    (For BatchNorm: in a tangent pass the shift by a bias before it goes out with the mean, in reverse it is a sum of
    large terms that rounds. Reverse over forward, which looks as cheap, is wrong there:
    `tests/bilevel/test_torch_facts.py`.)
    """

    def loss(parameters: Tensors) -> tuple[Tensor, Tensor]:
        def body(module: nn.Module) -> tuple[Tensor, Tensor]:
            losses = question.sample_losses(module)
            return question.reduce(module, losses), losses

        found: tuple[Tensor, Tensor] = question.run.replay(question.step, parameters, body, composites=True)
        return found

    def body(module: nn.Module) -> Any:
        # Inside of a replay of its own: on the way back the model may read its tensors once more, and write to buffers.
        return jvp(grad(loss, has_aux=True), (question.at,), (question.direction,))

    (slope, _), (product, values) = question.run.replay(question.step, question.at, body)
    # The graph to whatever else the objective reads (a temperature that requires a gradient, say) is cut.
    return Curved(
        {n: one.detach() for n, one in product.items()}, values.detach(), {n: g.detach() for n, g in slope.items()}
    )


class Differences:
    """Central differences along u: of the values, which need no rule, and of the gradient.

    Args:
        length: of the step in parameter space, h times the norm of u; None: the cube root of the precision (of
            autocast, where that is on), which balances truncation against rounding. Not relative to the norm of
            theta: in a wide net that is large, and the step would cross kinks everywhere.
    """

    def __init__(self, length: float | None = None) -> None:
        self.length = length

    def values(self, question: Question) -> Tensor:
        """Two forward passes without a graph, for each part of u."""
        total: Tensor | None = None
        with torch.no_grad():
            for direction, h in self._parts(question):
                up, down = (question.losses(_moved(question.at, direction, one)) for one in (h, -h))
                found = (up - down) / (2 * h)
                total = found if total is None else total + found
            if total is None:
                total = torch.zeros_like(question.losses(question.at))
        return total

    def gradients(self, question: Question) -> Tensors:
        """Two gradients, for each part of u: J u of the gradient field, which is H u where J is symmetric."""
        total = {name: torch.zeros_like(value) for name, value in question.at.items()}
        for direction, h in self._parts(question):
            up, down = (gradient(question.run, question.step, _moved(question.at, direction, one)) for one in (h, -h))
            for name, value in total.items():
                value += (up[name] - down[name]) / (2 * h)
        return total

    def curved(self, question: Question) -> Curved:
        """All three."""
        return Curved(
            self.gradients(question), self.values(question), gradient(question.run, question.step, question.at)
        )

    def _parts(self, question: Question) -> list[tuple[Tensors, float]]:
        """Split u so that no part has a few huge entries beside which the step vanishes in all the others.

        (An adaptive optimizer has u = e / eps where a gradient has been zero, 1e8 times the rest.)
        """
        autocast = question.step.conditions.autocast
        precision = autocast[1] if autocast else next(iter(question.at.values())).dtype
        length = self.length or torch.finfo(precision).eps ** (1 / 3)
        found = []
        for part in _by_size(question.direction):
            size = math.sqrt(float(dot(part, part)))
            if size:
                found.append((part, length / size))
        return found


_HUGE = 1e3
"""How many times the root mean square of the other entries an entry of u is that is stepped along by itself."""


def _by_size(direction: Tensors) -> list[Tensors]:
    """Return u as a sum of at most four parts, each without entries far above its others."""
    parts: list[Tensors] = []
    rest = direction
    while len(parts) < 3:
        sizes = torch.cat([value.detach().abs().flatten().double() for value in rest.values()])
        sizes = sizes[sizes > 0]
        if not len(sizes) or not bool(torch.isfinite(sizes).all()):
            break
        bound = _HUGE * float(sizes.median())
        if float(sizes.max()) <= bound:
            break
        parts.append({name: torch.where(value.abs() > bound, value, 0) for name, value in rest.items()})
        rest = {name: torch.where(value.abs() > bound, 0, value) for name, value in rest.items()}
    return [rest, *parts]


def loss_rungs(differences: Differences | None = None) -> list[Rung]:
    """Return the ways to the t_i alone, in order; with `differences` of the values first, instead of rules."""
    by_rules = [
        Rung(KEPT, _kept_graph_alone, passing=True),
        Rung("row products of the record", _row_products, passing=True),
        Rung("forward over the record", _recorded_forward, passing=True),
        Rung("forward over a replay", _replayed_forward),
        Rung("torch's forward mode", _torch_forward),
    ]
    by_values = [] if differences is None else [Rung("differences of the losses", differences.values)]
    return [
        *(by_values or by_rules),
        Rung("double backward", _double_backward),
        Rung("ordinary backward", _ordinary_backward, ordinary=True),
    ]


ROUNDED = Rung("forward over a record in float64", _recorded_forward, passing=True)
"""A tangent pass in float32 over the values of a forward pass in float64."""


def curvature_rungs(coupled: bool, differences: Differences | None = None) -> list[Rung]:
    """Return the ways to H u, t_i and the gradient at once, in order.

    Args:
        coupled: the samples couple through BatchNorm, say.
        differences: take differences first, and not last.
    """
    reverse = Rung(EXACT, _reverse_over_reverse)
    forward = Rung("forward over reverse", forward_over_reverse)
    exact = [forward, reverse] if coupled else [reverse, forward]
    by_differences = Rung("differences of the gradient", (differences or Differences()).curved)
    exact = [Rung(KEPT, _kept_graph, passing=True), *exact]
    return [*exact, by_differences] if differences is None else [by_differences, *exact]


def _record_of(question: Question) -> Any:
    forward_record = question.step.findings.forward_record
    if forward_record is None or not question.recorded:
        raise Unusable("the forward pass of the step was not kept")
    return forward_record


def _without_autocast(question: Question) -> Any:
    device = next(iter(question.at.values())).device.type  # (ids may be elsewhere)
    return torch.autocast(device, enabled=False)


def _drop(tensor: Any) -> Any:
    """Save nothing: no backward pass will follow."""


def _moved(at: Tensors, direction: Tensors, h: float) -> Tensors:
    with torch.no_grad():
        return {name: value.add(direction[name], alpha=h) for name, value in at.items()}
