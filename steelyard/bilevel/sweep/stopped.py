"""Does a model take values out of the graph, does that matter, and what is left when they are held?"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from steelyard.bilevel.replay import leaves_of
from steelyard.bilevel.sweep.question import Question

__all__ = ["Held", "stops_gradients"]

_VIEWS = frozenset({Tensor.detach, torch.detach, Tensor.data.__get__})  # type: ignore[attr-defined]
_OUT = frozenset(
    {
        *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__float__, Tensor.__array__),
        *(torch.tensor, Tensor.new_tensor, torch.as_tensor),
    }
)
"""What takes numbers out of torch, and back into it."""
_STOPS = _VIEWS | _OUT | {Tensor.detach_, torch.autograd.grad}
_SWITCH = torch._C._set_grad_enabled
Mode = TypeVar("Mode", bound="_Off")


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
    """Knows whether the model has turned gradients off. (They are off inside of an autograd function, too.)

    Compiled parts of the model run as they are written: a compiler cannot trace such a mode.
    """

    def __init__(self) -> None:
        super().__init__()
        self._before: list[tuple[bool, bool]] = []
        self._switched = False
        self._entered = ExitStack()

    def __enter__(self: Mode) -> Mode:
        self._entered.enter_context(torch.compiler.set_stance("force_eager"))  # type: ignore[no-untyped-call]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._entered.close()

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

    def stops(self, func: Any, args: Any, kwargs: Any) -> bool:
        """Whether a call takes a tensor out of the graph. (One without a gradient has nothing to leave.)"""
        if func not in _STOPS or (func is torch.autograd.grad and kwargs.get("create_graph")):
            return False
        if not any(one.requires_grad for one in _tensors((args, kwargs))):
            return False
        states = [*self._before, (torch.is_grad_enabled(), self._switched)]
        return all(on or switched for on, switched in states)  # else in an autograd function, which has its own


class _Watch(_Off):
    stopped = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _SWITCH:
            self.switch(args[0])
        self.stopped |= self.off or self.stops(func, args, kwargs)
        return func(*args, **kwargs)


class Held(_Off):
    """Inside, what leaves the graph is noted; inside once more, it is what it was then, wherever the parameters are.

    So a difference of the gradient is its derivative as autograd has it, what left the graph being constant. What is
    computed without gradients is held operator by operator. Comparisons and places (of a largest entry) are held in
    any case: their derivative is 0, and a jump of one that happens to be near is not meant.

    Args:
        wide: numbers come back into torch in float64, where that is how all else is.

    Attributes:
        known: all of it could be held. (What is written into parameters without gradients cannot, and where the model
            takes another way there is nothing to compare.)
    """

    def __init__(self, wide: bool = False) -> None:
        super().__init__()
        self.known = True
        self._wide = wide
        self._noted: list[tuple[Any, Any]] = []
        self._place: int | None = None
        self._all = True
        self._own: frozenset[int] = frozenset()
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}

    def over(self, at: Iterable[Tensor], first: bool = False, everything: bool = True) -> Held:
        """Have the next pass, with parameters in the memory `at`, take the values that were noted, from the first on.

        With `first` it notes them; without `everything` comparisons and places alone are held.
        """
        self._place, self._all = None if first else 0, everything
        self._own = frozenset(_memory(one) for one in at)
        self._copies = {}
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _SWITCH:
            self.switch(args[0])
            return func(*args, **kwargs)
        stops = self.stops(func, args, kwargs)
        found = func(*args, **kwargs)
        if self._wide and func is torch.tensor and found.dtype == torch.float32:
            found = func(*args, **{**kwargs, "dtype": torch.float64})
        name = func.__name__
        if name == "__setitem__" or (name.endswith("_") and name[-2:] != "__") or "out" in kwargs:
            self._wrote(func, args, kwargs)
            return found
        if stops:
            return self._hold(func, found, view=func in _VIEWS)
        if self.off:
            # (A view of what has a gradient says that it has one, too, and has none.)
            made = _tensors(found)
            return self._hold(func, found) if made and not any(one is arg for one in made for arg in args) else found
        if any(one.is_floating_point() for one in _tensors((args, kwargs))):
            return tree_map(lambda one: self._hold(func, one, always=True) if _is_place(one) else one, found)
        return found

    def _hold(self, func: Any, found: Any, view: bool = False, always: bool = False) -> Any:
        """Note a value, or return what was noted in its place; of a `view` writes go to the tensor's memory as well."""
        if self._place is None:
            self._noted.append((func, deepcopy(found)))
            return found
        if self._place >= len(self._noted) or self._noted[self._place][0] != func:
            self.known = False  # another way was taken
            return found
        value = self._noted[self._place][1]
        self._place += 1
        if not (self._all or always):
            return found
        value = deepcopy(value)  # it may be written to
        if view:
            self._copies[id(value)] = value, found
        return value

    def _wrote(self, func: Any, args: Any, kwargs: Any) -> None:
        """Follow a write in place: into what stands for a view, and where there are no gradients."""
        into = kwargs.get("out", args[0] if args else None)
        _, live = self._copies.get(id(into), (None, None))
        if live is not None:  # that memory has it, too
            func(live, *args[1:], **kwargs)
        if not self.off:
            return
        if not isinstance(into, Tensor) or _memory(into) in self._own:
            self.known = False
            return
        if into.requires_grad and not into.is_leaf:  # what is not written over keeps its gradient
            return
        held = self._hold(func, into.detach())
        if self._all and self._place is not None and held.shape == into.shape:
            with torch.no_grad():
                into.copy_(held)


def _tensors(values: Any) -> list[Tensor]:
    return [one for one in tree_leaves(values) if isinstance(one, Tensor)]


def _is_place(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point() and not value.is_complex()


def _memory(value: Tensor) -> int:
    return int(value.untyped_storage()._cdata)
