"""The exponential moving average of a model's weights, through torch's own `AveragedModel`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from steelyard._support import _check

__all__ = ["ema"]

Tensors = tuple[Tensor, ...] | list[Tensor]


def ema(model: nn.Module, decay: float = 0.999, *, bias_corrected: bool = False) -> AveragedModel:
    """Return an averaged copy of `model`: call ``.update_parameters(model)`` after each optimizer step.

    beta <- a beta + (1 - a) theta for parameters and floating buffers (BatchNorm's statistics belong to the weights
    they were measured under); integer buffers are copied. The first update copies the model.

    Args:
        model: the module that is trained; it is not changed.
        decay: a, in [0, 1).
        bias_corrected: a = min(1 - 1 / (step + 1), decay) with steps counted from 0, as in LHD's code: the plain mean
            of the weights until the decay is reached, so that an early average does not hang on to the initial weights.

    Returns:
        The `AveragedModel`; it is a module (its `.module` is the averaged copy) with a state dict.

    Raises:
        ValueError: decay outside of [0, 1).

    References:
        S. Khosla et al., Understanding and Improving Neural Active Learning on Heteroskedastic Distributions, 4.2 and
        Algorithm 1.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> average = ema(model, 0.9)
        >>> for value in (1.0, 2.0):
        ...     _ = nn.init.constant_(model.weight, value)
        ...     average.update_parameters(model)
        >>> round(average.module.weight.item(), 6)
        1.1
    """
    decay = _check.in_range("decay", decay, low=0, high=1, open_high=True)

    @torch.no_grad()
    def update(averages: Tensors, values: Tensors, step: Tensor | int) -> None:
        count = int(step)
        keep = min(1 - 1 / (count + 1), decay) if bias_corrected else decay
        # AveragedModel hands over one dtype at a time. The foreach functions are what its own averages use.
        if averages[0].is_floating_point() or averages[0].is_complex():
            torch._foreach_lerp_(averages, values, 1 - keep)
        else:
            torch._foreach_copy_(averages, values)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
