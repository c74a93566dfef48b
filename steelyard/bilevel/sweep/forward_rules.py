"""How one operator's output moves when its inputs do, from what its forward pass has computed already.

torch's forward mode evaluates an operator again to differentiate it. Where inputs and outputs of the forward pass are
still there, a convolution needs two convolutions instead of three, a normalisation its backward kernel, and a
ReLU one pass. An operator without a rule here goes through torch's forward mode by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from steelyard.bilevel._forward_mode import dual_level

__all__ = ["Call", "Rule", "rule_for"]

aten = torch.ops.aten


@dataclass
class Call:
    """One operator call of a forward pass and the tangents of its arguments.

    Attributes:
        op: the operator.
        args, kwargs: its arguments; tensors that its rule does not keep are None.
        tangents: of its positional arguments, aligned with `args`; None where there is none; for a list, a list.
        outputs: its outputs; those that its rule does not keep are None.
        shapes: of its outputs.
        spare: positions of tangents that nothing reads afterwards, which a rule may write into.
    """

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tangents: tuple[Any, ...]
    outputs: tuple[Tensor | None, ...]
    shapes: tuple[torch.Size, ...]
    spare: frozenset[int] = frozenset()


class Rule(NamedTuple):
    """A derivative and what it reads.

    Attributes:
        tangents: from a call to the tangents of its outputs (as many as it has to say; the others have none).
        keep: from the arguments to the positions of those that it reads.
        outputs: the outputs that it reads.
    """

    tangents: Callable[[Call], Sequence[Tensor | None]]
    keep: Callable[[tuple[Any, ...]], Sequence[int]]
    outputs: tuple[int, ...] = ()


def rule_for(op: Any, args: tuple[Any, ...]) -> Rule | None:
    """Return the rule of an operator; None if it cannot be differentiated afterwards (it draws random numbers)."""
    found = _RULES.get(op)
    if found is not None and found.fits(args):
        return found.rule
    return None if torch.Tag.nondeterministic_seeded in op.tags else _FORWARD_MODE


class _Entry(NamedTuple):
    rule: Rule
    fits: Callable[[tuple[Any, ...]], bool]


_RULES: dict[Any, _Entry] = {}


def _rule(
    *ops: str,
    keep: Sequence[int] | Callable[[tuple[Any, ...]], Sequence[int]] = (),
    outputs: tuple[int, ...] = (),
    fits: Callable[[tuple[Any, ...]], bool] = lambda args: True,
) -> Callable[[Callable[[Call], Sequence[Tensor | None]]], Callable[[Call], Sequence[Tensor | None]]]:
    keeps = keep if callable(keep) else lambda args: keep

    def register(function: Callable[[Call], Sequence[Tensor | None]]) -> Callable[[Call], Sequence[Tensor | None]]:
        for name in ops:
            packet, overload = name.split(".")
            _RULES[getattr(getattr(aten, packet), overload)] = _Entry(Rule(function, keeps, outputs), fits)
        return function

    return register


@_rule(
    *("view.default", "_unsafe_view.default", "_reshape_alias.default", "t.default", "transpose.int"),
    *("permute.default", "expand.default", "unsqueeze.default", "squeeze.default", "squeeze.dim", "squeeze.dims"),
    *("select.int", "slice.Tensor", "alias.default", "_to_copy.default"),
    *("clone.default", "neg.default", "mean.default", "mean.dim", "sum.default", "sum.dim_IntList"),
    *("_adaptive_avg_pool2d.default", "avg_pool2d.default", "mul.Scalar", "div.Scalar"),
)
def _linear(call: Call) -> Sequence[Tensor | None]:
    return (call.op(call.tangents[0], *call.args[1:], **call.kwargs),)


@_rule("add.Scalar", "sub.Scalar", "add_.Scalar", "sub_.Scalar")
def _shifted(call: Call) -> Sequence[Tensor | None]:
    return (call.tangents[0],)


@_rule("add.Tensor", "add_.Tensor")
def _sum(call: Call) -> Sequence[Tensor | None]:
    first, second = call.tangents[0], call.tangents[1]
    alpha = call.kwargs.get("alpha", 1)
    if second is None:
        return (first.expand(call.shapes[0]),)
    if first is None:
        return ((second * alpha if alpha != 1 else second).expand(call.shapes[0]),)
    if 0 in call.spare and first.shape == call.shapes[0] and first.dtype == second.dtype:
        return (first.add_(second, alpha=alpha),)
    return (torch.add(first, second, alpha=alpha),)


@_rule("mul.Tensor", "mm.default", "bmm.default", keep=(0, 1))
def _bilinear(call: Call) -> Sequence[Tensor | None]:
    (first, second), (moved_first, moved_second) = call.args[:2], call.tangents[:2]
    if moved_second is None:
        return (call.op(moved_first, second),)
    if moved_first is None:
        return (call.op(first, moved_second),)
    return (call.op(moved_first, second).add_(call.op(first, moved_second)),)


@_rule("addmm.default", keep=(1, 2), fits=lambda args: len(args) == 3)
def _affine(call: Call) -> Sequence[Tensor | None]:
    beta, alpha = call.kwargs.get("beta", 1), call.kwargs.get("alpha", 1)
    (_, rows, columns), (bias, moved_rows, moved_columns) = call.args, call.tangents
    total = None
    for left, right in ((moved_rows, columns), (rows, moved_columns)):
        if left is None or right is None:
            continue
        total = torch.mm(left, right) if total is None else total.addmm_(left, right)
    if total is not None and alpha != 1:
        total.mul_(alpha)
    if bias is None:
        return (total,)
    bias = bias * beta if beta != 1 else bias
    return (bias.expand(call.shapes[0]) if total is None else total.add_(bias),)


@_rule("convolution.default", keep=(0, 1), fits=lambda args: len(args) == 9)
def _convolution(call: Call) -> Sequence[Tensor | None]:
    (x, weight), (moved_x, moved_weight, bias) = call.args[:2], call.tangents[:3]
    total = None if moved_x is None else call.op(moved_x, weight, None, *call.args[3:])
    if moved_weight is not None:
        second = call.op(x, moved_weight, bias if total is None else None, *call.args[3:])
        if total is None:
            return (second,)
        total.add_(second)
    if bias is not None:
        bias = bias.view(-1, *[1] * (len(call.shapes[0]) - 2))
        total = bias.expand(call.shapes[0]) if total is None else total.add_(bias)
    return (total,)


def _norm_keeps(args: tuple[Any, ...]) -> Sequence[int]:
    return (0, 1) if args[5] else (0, 1, 3, 4)


@_rule("native_batch_norm.default", keep=_norm_keeps, outputs=(1, 2))
def _batch_norm(call: Call) -> Sequence[Tensor | None]:
    x, weight, _, mean, variance, training, _, eps = call.args
    moved, moved_weight, moved_bias = call.tangents[:3]
    if training:
        _, mean, scale = call.outputs
        assert mean is not None
        assert scale is not None
        variance = scale.pow(-2) - eps
    total = None
    if moved is not None and training:
        # The derivative by the input is a symmetric matrix in every channel: the backward kernel applies it.
        total = aten.native_batch_norm_backward(
            moved, x, weight, None, None, mean, scale, True, eps, [True, False, False]
        )[0]
    elif moved is not None:
        total = torch.native_batch_norm(moved, weight, None, torch.zeros_like(mean), variance, False, 0.0, eps)[0]
    if moved_weight is None and moved_bias is None:
        return (total,)
    slope = torch.zeros_like(moved_bias) if moved_weight is None else moved_weight
    affine = torch.native_batch_norm(x, slope, moved_bias, mean, variance, False, 0.0, eps)[0]
    return (affine if total is None else total.add_(affine),)


@_rule("native_group_norm.default", keep=(0, 1, 2))
def _group_norm(call: Call) -> Sequence[Tensor | None]:
    x, weight, bias = call.args[:3]
    moved, moved_weight, moved_bias = call.tangents[:3]
    if moved is not None or weight is None or bias is None:
        return _by_forward_mode(call)
    # Its scale and shift alone: the same kernel, with their tangents in their places.
    slope = torch.zeros_like(weight) if moved_weight is None else moved_weight
    shift = torch.zeros_like(bias) if moved_bias is None else moved_bias
    return (call.op(x, slope, shift, *call.args[3:])[0],)


@_rule("relu.default", "relu_.default", outputs=(0,))
def _relu(call: Call) -> Sequence[Tensor | None]:
    moved, output = call.tangents[0], call.outputs[0]
    if 0 in call.spare:
        return (aten.threshold_backward.grad_input(moved, output, 0, grad_input=moved),)
    return (aten.threshold_backward(moved, output, 0),)


@_rule("max_pool2d_with_indices.default", outputs=(1,), fits=lambda args: args[0].ndim == 4)
def _max_pool(call: Call) -> Sequence[Tensor | None]:
    places = call.outputs[1]
    assert places is not None
    return (call.tangents[0].flatten(2).gather(2, places.flatten(2)).view(call.shapes[0]),)


@_rule("_log_softmax.default", outputs=(0,))
def _log_softmax(call: Call) -> Sequence[Tensor | None]:
    output = call.outputs[0]
    assert output is not None
    # In float64, of shares that add up to 1: where one class has it all, what is left is a small difference.
    moved, shares = call.tangents[0].double(), output.double().softmax(call.args[1])
    return ((moved - (shares * moved).sum(call.args[1], keepdim=True)).to(output.dtype),)


@_rule("nll_loss_forward.default", keep=(1, 2))
def _nll(call: Call) -> Sequence[Tensor | None]:
    return (call.op(call.tangents[0], *call.args[1:])[0],)


@_rule("native_dropout.default", outputs=(1,), fits=lambda args: bool(args[2]))
def _dropout(call: Call) -> Sequence[Tensor | None]:
    kept = 1 - call.args[1]
    return (call.tangents[0] * call.outputs[1] * (1 / kept if kept else 0.0),)


def _by_forward_mode(call: Call) -> Sequence[Tensor | None]:
    """Evaluate the operator once more, by torch's forward mode."""

    def dual(value: Any, tangent: Any) -> Any:
        if isinstance(value, (list, tuple)) and isinstance(tangent, list):
            return [dual(one, other) for one, other in zip(value, tangent, strict=True)]
        return value if tangent is None else forward_ad.make_dual(value, tangent)

    with dual_level():
        values = [dual(value, tangent) for value, tangent in zip(call.args, call.tangents, strict=True)]
        if call.op._schema.is_mutable:  # its own copy: what it was given may be read again
            values[0] = torch.clone(values[0])
        if "batch_norm" in call.op.name():  # writes to its running statistics, of which its schema says nothing
            values = [
                one.clone() if isinstance(one, Tensor) and place in (3, 4) else one for place, one in enumerate(values)
            ]
        found = call.op(*values, **call.kwargs)
        outputs = found if isinstance(found, (list, tuple)) else (found,)
        return [forward_ad.unpack_dual(one).tangent if isinstance(one, Tensor) else None for one in outputs]


_FORWARD_MODE = Rule(_by_forward_mode, lambda args: range(len(args)))
