"""The last hook before an optimizer's step and the first after it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

__all__ = ["StepHooks"]


class StepHooks:
    """Calls `before` and `after` around every step of an optimizer: other hooks may change gradients or rates.

    A step that calls that of its base class is one step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, before: Callable[[], None], after: Callable[[], None]) -> None:
        self._optimizer = optimizer
        self._around: tuple[Callable[[], None], ...] = before, after
        self._depth = 0
        self._handles: list[RemovableHandle] = []
        self.listen()

    @property
    def removed(self) -> bool:
        """Whether nothing is called any more."""
        return not self._handles

    def listen(self) -> None:
        """Stand next to the step, where others were registered since; outside of one (where the last has failed)."""
        self._depth = 0
        pre, post = (getattr(self._optimizer, f"_optimizer_step_{when}_hooks", None) for when in ("pre", "post"))
        ordered = isinstance(pre, OrderedDict) and isinstance(post, OrderedDict)
        if self._handles and ordered and pre and post:
            before, after = self._handles
            if next(reversed(pre)) == before.id and next(iter(post)) == after.id:
                return  # they do so already
        self._unregister()
        before = self._optimizer.register_step_pre_hook(self._enter)
        after = self._optimizer.register_step_post_hook(self._leave)
        if isinstance(post, OrderedDict) and after.id in post:
            post.move_to_end(after.id, last=False)
        self._handles = [before, after]

    def remove(self) -> None:
        """Call nothing any more, and hold nobody who was called."""
        self._unregister()
        self._around = ()

    def _unregister(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _enter(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._depth += 1
        if self._depth == 1:
            self._around[0]()

    def _leave(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._depth = max(0, self._depth - 1)
        if not self._depth:
            self._around[1]()
