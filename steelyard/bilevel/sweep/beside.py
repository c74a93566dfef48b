"""BatchNorm asked of samples outside of the recorded batch: each is normalised as one more row of that batch.

A row of weight 0 that is added to a batch of B moves mean and variance by a share of 1 / (B + 1). The samples are
evaluated beside the recorded rows, and each layer takes for a sample the statistics of the recorded rows and of that
sample, as functions of the parameters. The recorded rows are normalised by themselves. With one such layer the loss of
the sample is that in a batch of B + 1; with several, left out is how the row moves the recorded rows in the layers
before, and through them its own statistics. (results/benchmarks/batchnorm.md compares this with training again.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from steelyard._support import _nested
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.objective import WeightedLoss

__all__ = ["losses_beside"]


def losses_beside(weighted: WeightedLoss, module: nn.Module, recorded: Batch, others: Batch) -> Tensor:
    """Return the losses of all samples ``(recorded + others,)``, each of `others` as one more row of `recorded`.

    Raises:
        ValueError: a BatchNorm layer is given a number of rows that is no multiple of the samples.
    """
    with _as_rows_of(module, len(recorded), len(recorded) + len(others)):
        return weighted.sample_losses(module, _joined(recorded, others))


@contextmanager
def _as_rows_of(module: nn.Module, recorded: int, count: int) -> Iterator[None]:
    """Have BatchNorm in training mode normalise the samples from number `recorded` on as rows of the first ones."""

    def normalise(
        layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor
    ) -> Tensor | None:
        assert isinstance(layer, _BatchNorm)
        if not layer.training and layer.running_mean is not None:
            return None
        x = args[0] if args else kwargs["input"]
        if len(x) % count:
            raise ValueError(f"BatchNorm is given {len(x)} rows of {count} samples")
        # A model may fold other axes, of time say, into that of the batch: (samples, rows of each, channels, ...).
        samples = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(0, (count, -1))
        normalised = _normalised(samples, recorded, layer.eps).flatten(0, 1)
        if layer.affine:
            shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
            normalised = normalised * layer.weight.view(shape) + layer.bias.view(shape)
        return normalised.to(output.dtype)

    layers = [one for one in module.modules() if isinstance(one, _BatchNorm)]
    handles = [layer.register_forward_hook(normalise, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _normalised(x: Tensor, recorded: int, eps: float) -> Tensor:
    """Return ``x`` (samples, rows, channels, ...) normalised over all but the channels."""
    first, others = x[:recorded], x[recorded:]
    within = [axis for axis in range(1, x.ndim) if axis != 2]
    variance, mean = torch.var_mean(first, [0, *within], correction=0, keepdim=True)
    own_variance, own_mean = torch.var_mean(others, within, correction=0, keepdim=True)
    share = 1 / (recorded + 1)
    joint_mean = mean + share * (own_mean - mean)
    # E (x - joint mean)^2 over both
    joint_variance = (1 - share) * (variance + (mean - joint_mean) ** 2)
    joint_variance = joint_variance + share * (own_variance + (own_mean - joint_mean) ** 2)
    as_recorded = (first - mean) * torch.rsqrt(variance + eps)
    as_rows = (others - joint_mean) * torch.rsqrt(joint_variance + eps)
    return torch.cat([as_recorded, as_rows])


def _joined(one: Batch, other: Batch) -> Batch:
    """Return the samples of both; environments and groups where both have them."""

    def maybe(first: Tensor | None, second: Tensor | None) -> Tensor | None:
        return None if first is None or second is None else torch.cat([first, second])

    return Batch(
        _nested.combined(lambda name, rows: torch.cat(rows), "inputs", [one.inputs, other.inputs]),
        torch.cat([one.targets, other.targets]),
        torch.cat([one.index, other.index]),
        maybe(one.environment, other.environment),
        maybe(one.group, other.group),
    )
