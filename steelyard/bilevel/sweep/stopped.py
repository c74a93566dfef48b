"""Does a model stop gradients on purpose?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from steelyard.bilevel.replay import leaves_of
from steelyard.bilevel.sweep.question import Question

__all__ = ["stops_gradients"]

_STOPS = {Tensor.detach, Tensor.detach_, torch.detach, torch._C._set_grad_enabled, Tensor.data.__get__}  # type: ignore[attr-defined]


def stops_gradients(question: Question) -> bool:
    """Whether a replay of the step detaches what has a gradient, reads its ``.data`` or turns gradients off."""
    leaves = leaves_of(question.run, question.at)

    def body(module: Any) -> bool:
        run, step = question.run, question.step
        with _Watch() as watch:
            if not run.is_weighted:
                run.inner_loss(step, module)
            else:  # (the divisor of the weights is not asked)
                run.weighted.sample_losses(module, step.batch)
                if run.weighted.regulariser is not None:
                    run.weighted.regulariser(module)
        return watch.stopped

    found: bool = question.replay(body, leaves)
    return found


class _Watch(TorchFunctionMode):
    stopped = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled:
            self.stopped |= not args[0]
        elif func in _STOPS:  # (data that a penalty is differentiated by has no gradient to stop)
            self.stopped |= isinstance(args[0], Tensor) and args[0].requires_grad
        return func(*args, **(kwargs or {}))
