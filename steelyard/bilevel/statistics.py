"""The path through running statistics (of BatchNorm, InstanceNorm), which autograd does not know.

An outer loss is usually evaluated in eval mode. It then reads the running means and variances, and those are
averages over the activations of the recorded steps: they move with every parameter vector after the first, hence
with the sample weights. torch gives no derivative by running statistics, and updates them outside of autograd; this
module supplies both: the derivative of an eval-mode layer by its statistics, and the adjoint of their update
s' = (1 - m) s + m batch_statistic. With T = 1 the path is empty: the one forward pass of the window precedes the
update that the weights act on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from steelyard.bilevel.replay import leaves_of
from steelyard.bilevel.step import Step, Tensors
from steelyard.bilevel.trajectory import Trajectory

__all__ = ["differentiable_statistics", "statistics_adjoint", "tracking_layers"]


def tracking_layers(module: nn.Module) -> dict[str, _NormBase]:
    """Return the BatchNorm and InstanceNorm layers with running statistics, by name (a shared layer once)."""
    return {n: m for n, m in module.named_modules() if isinstance(m, _NormBase) and m.running_mean is not None}


@contextmanager
def differentiable_statistics(module: nn.Module) -> Iterator[Tensors]:
    """Yield leaves for the running statistics; inside, layers in eval mode compute with them, differentiably."""
    layers = tracking_layers(module)
    leaves: Tensors = {}
    handles = []
    for name, layer in layers.items():
        mean, variance = _key(name, "running_mean"), _key(name, "running_var")
        leaves[mean] = _present(layer.running_mean).detach().clone().requires_grad_()
        leaves[variance] = _present(layer.running_var).detach().clone().requires_grad_()
        hook = _EvalForward(leaves[mean], leaves[variance])
        handles.append(layer.register_forward_hook(hook, with_kwargs=True))
    try:
        yield leaves
    finally:
        for handle in handles:
            handle.remove()


_ZERO = torch.zeros(())


class _EvalForward:
    """A forward hook: the output of an eval-mode BatchNorm as a function of its statistics."""

    def __init__(self, mean: Tensor, variance: Tensor) -> None:
        self.mean, self.variance = mean, variance

    def __call__(
        self, layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor
    ) -> Tensor | None:
        if layer.training or not isinstance(layer, _NormBase):
            return None
        x = args[0] if args else kwargs["input"]
        channels = _channels(layer, x)
        shape = [-1 if axis == channels else 1 for axis in range(x.ndim)]
        y = (x - self.mean.view(shape)) * torch.rsqrt(self.variance.view(shape) + layer.eps)
        if layer.affine:
            y = y * layer.weight.view(shape) + layer.bias.view(shape)
        return y.to(output.dtype)


class _Call(NamedTuple):
    name: str
    means: Tensor
    variances: Tensor
    momentum: float


def _channels(layer: _NormBase, x: Tensor) -> int:
    """Return the axis of the channels: InstanceNorm takes a sample without a batch axis, too."""
    alone = isinstance(layer, _InstanceNorm) and x.ndim == layer._get_no_batch_dim()  # type: ignore[no-untyped-call]
    return 0 if alone else 1


def _statistics(layer: _NormBase, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means and unbiased variances ``(channels,)`` that the layer moves its running ones towards.

    InstanceNorm takes those of each sample, and averages them.
    """
    if not isinstance(layer, _InstanceNorm):
        axes = [axis for axis in range(x.ndim) if axis != 1]
        return x.mean(axes), x.var(axes, unbiased=True)
    x = x.unsqueeze(0) if _channels(layer, x) == 0 else x
    axes = list(range(2, x.ndim))
    return x.mean(axes).mean(0), x.var(axes, unbiased=True).mean(0)


def statistics_adjoint(
    run: Trajectory, step: Step, at: Tensors, after: Tensors, tensors: Sequence[Tensor] = (), settled: bool = False
) -> tuple[Tensors, Tensors, tuple[Tensor, ...]]:
    """Pull the adjoint of the running statistics back through the forward pass of one step.

    Args:
        run, step, at: the step, replayed at the parameters `at`.
        after: adjoint of the statistics after the step, by buffer name.
        tensors: whatever else the activations may depend on.
        settled: take the statistics as converged to those of this batch (momentum 1), as `Implicit` does.

    Returns:
        What reaches the parameters, the adjoint of the statistics before the step, and what reaches `tensors`.
    """
    leaves = leaves_of(run, at)
    before = dict(after)

    def body(module: nn.Module) -> tuple[Tensor, ...] | None:
        run.inner_loss(step, module)
        terms = []
        for call in reversed(calls):
            momentum = 1.0 if settled else call.momentum
            mean, variance = _key(call.name, "running_mean"), _key(call.name, "running_var")
            terms.append(momentum * (before.get(mean, _ZERO) * call.means).sum())
            terms.append(momentum * (before.get(variance, _ZERO) * call.variances).sum())
            before.update({key: before[key] * (1 - momentum) for key in (mean, variance) if key in before})
        total = torch.stack(terms).sum() if terms else torch.zeros(())
        if not total.requires_grad:
            return None
        return torch.autograd.grad(total, [*leaves.values(), *tensors], allow_unused=True, materialize_grads=True)

    with torch.enable_grad(), _noted(run.module, step) as calls:
        found = run.replay(step, leaves, body)
    if found is None:
        zeros = {name: torch.zeros_like(value) for name, value in at.items()}
        return zeros, before, tuple(torch.zeros_like(tensor) for tensor in tensors)
    return dict(zip(leaves, found[: len(leaves)], strict=True)), before, found[len(leaves) :]


@contextmanager
def _noted(module: nn.Module, step: Step) -> Iterator[list[_Call]]:
    """Note the input of every call of a layer that updates its statistics, in order."""
    calls: list[_Call] = []
    counts: dict[str, int] = {}

    def note(name: str, layer: _NormBase, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        if not layer.training:
            return
        counts[name] = counts.get(name, 0) + 1
        momentum = layer.momentum
        if momentum is None:  # a cumulative average: 1 / the number of batches so far, this one included
            momentum = 1.0 / (int(step.conditions.buffers[_key(name, "num_batches_tracked")]) + counts[name])
        x = args[0] if args else kwargs["input"]
        if len(x):  # a batch of nothing is counted, and moves nothing
            calls.append(_Call(name, *_statistics(layer, x), momentum))

    handles = [
        layer.register_forward_pre_hook(
            lambda m, args, kwargs, name=name: note(name, m, args, kwargs), with_kwargs=True
        )
        for name, layer in tracking_layers(module).items()
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _key(layer: str, buffer: str) -> str:
    return f"{layer}.{buffer}" if layer else buffer


def _present(buffer: Tensor | None) -> Tensor:
    assert buffer is not None
    return buffer
