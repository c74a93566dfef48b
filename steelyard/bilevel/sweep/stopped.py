"""Does a model stop gradients on purpose, does that matter, and what is left when what it stops is held?"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from steelyard.bilevel.replay import leaves_of
from steelyard.bilevel.sweep.question import Question

__all__ = ["Held", "stops_gradients"]

_OUT = frozenset({torch.tensor, Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__float__, Tensor.__array__})
"""What takes numbers out of torch."""
_STOPS = frozenset({Tensor.detach, Tensor.detach_, torch.detach, Tensor.data.__get__}) | _OUT  # type: ignore[attr-defined]
_SWITCH = torch._C._set_grad_enabled


def stops_gradients(question: Question) -> bool:
    """Whether a replay of the step takes something out of the graph that has a gradient, or turns gradients off."""
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


class _Off(TorchFunctionMode):
    """Knows whether the model has turned gradients off. (They are off inside of an autograd function, too.)"""

    def __init__(self) -> None:
        super().__init__()
        self._before: list[tuple[bool, bool]] = []
        self._switched = False

    @property
    def off(self) -> bool:
        """Whether what is computed now has no gradients, because the model says so."""
        return self._switched or torch.is_inference_mode_enabled()

    def switch(self, on: bool) -> None:
        """Follow a switch, which is about to be made: into a context, or back out of it."""
        now = torch.is_grad_enabled()
        if self._before and self._before[-1][0] == on:
            self._switched = self._before.pop()[1]
        else:
            self._before.append((now, self._switched))
            self._switched = self._switched if on == now else not on

    def stops(self, func: Any, args: Any) -> bool:
        """Whether a call takes a tensor out of the graph. (One without a gradient has nothing to leave.)"""
        if func not in _STOPS or not (isinstance(args[0], Tensor) and args[0].requires_grad):
            return False
        states = [*self._before, (torch.is_grad_enabled(), self._switched)]
        return all(on or switched for on, switched in states)  # else in an autograd function, which has its own


class _Watch(_Off):
    stopped = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _SWITCH:
            self.switch(args[0])
        self.stopped |= self.off or self.stops(func, args)
        return func(*args, **(kwargs or {}))


class Held(_Off):
    """Inside, what leaves the graph is noted; inside once more, it is what it was then, wherever the parameters are.

    So a difference of the gradient is its derivative as autograd has it, what left the graph being constant. What is
    computed without gradients is held operator by operator.

    Args:
        wide: numbers come back into torch in float64, where that is how all else is.

    Attributes:
        known: all of it could be held. (What is written in place without gradients cannot.)
    """

    def __init__(self, wide: bool = False) -> None:
        super().__init__()
        self.known = True
        self._wide = wide
        self._values: list[Any] = []
        self._place: int | None = None

    def again(self) -> Held:
        """Have the next pass take the values that were noted, from the first on."""
        self._place = 0
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _SWITCH:
            self.switch(args[0])
            return func(*args, **kwargs)
        stops = self.stops(func, args)
        found = func(*args, **kwargs)
        if self._wide and func is torch.tensor and found.dtype == torch.float32:
            found = func(*args, **{**kwargs, "dtype": torch.float64})
        if stops:
            self.known &= func is not Tensor.detach_
            return self._hold(found)
        if not self.off:
            return found
        name = func.__name__
        self.known &= name != "__setitem__" and not (name.endswith("_") and name[-2:] != "__") and "out" not in kwargs
        # (A view of what has a gradient says that it has one, too, and has none.)
        made = [one for one in tree_leaves(found) if isinstance(one, Tensor)]
        return self._hold(found) if made and not any(one is arg for one in made for arg in args) else found

    def _hold(self, found: Any) -> Any:
        if self._place is None:
            self._values.append(deepcopy(found))
            return found
        if self._place == len(self._values):
            self.known = False  # another way was taken
            return found
        self._place += 1
        return self._values[self._place - 1]
