"""Does a model stop gradients on purpose, and what is left when what it stops is held?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from steelyard.bilevel.replay import leaves_of
from steelyard.bilevel.sweep.question import Question

__all__ = ["Held", "stops_gradients"]

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


class Held(TorchFunctionMode):
    """Inside, what is detached is noted; inside once more, it is what it was then, wherever the parameters have gone.

    So a difference of the gradient is its derivative as autograd has it, detached values being constant.

    Attributes:
        known: all that stops gradients was seen to be `detach`. (What is computed under `no_grad` cannot be held.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.known = True
        self._values: list[Tensor] = []
        self._place: int | None = None

    def again(self) -> Held:
        """Have the next pass take the values that were noted, from the first on."""
        self._place = 0
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch._C._set_grad_enabled:
            self.known &= bool(args[0])
        elif func in _STOPS and isinstance(args[0], Tensor) and args[0].requires_grad:
            if func not in (Tensor.detach, torch.detach):
                self.known = False
            elif self._place is None:
                self._values.append(found.clone())
            elif self._place < len(self._values):
                self._place += 1
                return self._values[self._place - 1]
        return found
