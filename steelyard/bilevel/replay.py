"""An ordinary backward pass of a replayed step, and inner products over its parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from steelyard._support._modules import named_parameters_of
from steelyard.bilevel.integrity import pieces
from steelyard.bilevel.step import Step, Tensors
from steelyard.bilevel.sweep.graph_record import nodes_of
from steelyard.bilevel.trajectory import Trajectory

__all__ = ["backward_into", "differentiate", "dot", "gradient", "leaves_of", "quick_dot", "step_gradient"]


def gradient(run: Trajectory, step: Step, at: Tensors) -> Tensors:
    """Return the gradient of the step's inner loss at `at` by one reverse pass; zeros where it does not depend."""

    def body(module: nn.Module) -> Tensors:
        return differentiate(module, run.inner_loss(step, module), leaves)

    leaves = leaves_of(run, at)
    with torch.enable_grad():
        found: Tensors = run.replay(step, leaves, body)
    return found


def step_gradient(run: Trajectory, step: Step) -> Tensors:
    """Return the gradient of the step before any clip: that of each micro-batch by one reverse pass, scaled and summed.

    (On several ranks that of this one's share.)
    """
    total: Tensors = {}
    for one in step.micro_batches:
        found = gradient(run, one, one.parameters)
        for name, value in found.items():
            scaled = value if one.scale == 1.0 else value * one.scale
            total[name] = total[name] + scaled if name in total else scaled
    return total


def leaves_of(run: Trajectory, at: Tensors, hooks: list[RemovableHandle] | None = None) -> Tensors:
    """Return copies by reference that a backward pass can end in, with the gradient hooks of the live parameters.

    (A hook on a parameter changes what the optimizer is given: it is part of the run. `hooks` collects the handles,
    for a second derivative goes back to the same leaves, and not through the hooks.)
    """
    live = named_parameters_of(run.module)
    leaves = {}
    for name, value in at.items():
        leaf = leaves[name] = value.detach().requires_grad_()
        for hook in (getattr(live.get(name), "_backward_hooks", None) or {}).values():
            handle = leaf.register_hook(hook)
            if hooks is not None:
                hooks.append(handle)
    return leaves


def differentiate(
    module: nn.Module,
    outputs: Tensor,
    leaves: Tensors,
    cotangent: Tensor | None = None,
    retain_graph: bool = False,
) -> Tensors:
    """Return the gradient of `outputs` by `leaves` as an ordinary backward pass has it; zeros where none comes.

    (A reentrant `torch.utils.checkpoint` takes no `torch.autograd.grad`: there the gradients are collected.)
    """
    if _reentrant(nodes_of(outputs)):
        found: Sequence[Tensor] = _collected(module, outputs, leaves, cotangent, retain_graph)
    else:
        found = torch.autograd.grad(
            outputs,
            list(leaves.values()),
            cotangent,
            retain_graph=retain_graph,
            allow_unused=True,
            materialize_grads=True,
        )
    return dict(zip(leaves, found, strict=True))


def backward_into(
    module: nn.Module,
    outputs: Tensor,
    leaves: Tensors,
    cotangent: Tensor | None = None,
    nodes: Iterable[Any] | None = None,
) -> None:
    """Have an ordinary backward pass add the gradients to ``leaves[...].grad``, and nowhere else.

    `nodes` are those of the graph of `outputs`, where they are known.
    """
    if _reentrant(nodes_of(outputs) if nodes is None else nodes):
        held = [leaf.grad for leaf in leaves.values()]
        found = _collected(module, outputs, leaves, cotangent, False)
        for leaf, before, gradient in zip(leaves.values(), held, found, strict=True):
            leaf.grad = gradient if before is None else before + gradient
    else:
        torch.autograd.backward(outputs, cotangent, inputs=list(leaves.values()))


def _reentrant(nodes: Iterable[Any]) -> bool:
    """Whether a reentrant checkpoint is in the graph (a backward pass that fails there has let go of parts of it)."""
    return any(type(node).__name__ == "CheckpointFunctionBackward" for node in nodes)


def _collected(
    module: nn.Module, outputs: Tensor, leaves: Tensors, cotangent: Tensor | None, retain_graph: bool
) -> list[Tensor]:
    others = [p for p in module.parameters() if p.is_leaf and not any(p is leaf for leaf in leaves.values())]
    held = [p.grad for p in others]
    for p in (*others, *leaves.values()):
        p.grad = None
    try:
        torch.autograd.backward(outputs, cotangent, retain_graph=retain_graph)
        return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves.values()]
    finally:
        for leaf in leaves.values():
            leaf.grad = None
        for p, gradient in zip(others, held, strict=True):
            p.grad = gradient


def dot(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Tensor:
    """Return the inner product over all parameters, accumulated in float64."""
    pairs = (pair for name in one for pair in zip(pieces(one[name]), pieces(other[name]), strict=True))
    return torch.stack([torch.dot(first.double(), second.double()) for first, second in pairs]).sum()


def quick_dot(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Tensor:
    """Return `dot` accumulated in the parameters' own precision, a quarter of the time; it may overflow or vanish."""
    products = [torch.dot(g.flatten(), other[name].flatten().to(g.dtype)) for name, g in one.items()]
    return torch.stack(products).double().sum()
