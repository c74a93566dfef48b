"""What the newest recorded step left: the next one must start from it, or the pull-back would skip a change."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from steelyard.bilevel.integrity import Guard, changed, guards
from steelyard.bilevel.kept_update import copy_into
from steelyard.bilevel.step import Tensors

__all__ = ["AfterStep"]


class AfterStep:
    """Parameters and optimizer state after a step.

    Attributes:
        copies: of the parameters, by name; empty before the first step.
    """

    def __init__(self) -> None:
        self.copies: Tensors = {}
        self._guards: list[Guard] = []
        self._states: list[tuple[Guard, Tensor, str]] = []

    def note(self, names: Mapping[Tensor, str], spare: Tensors) -> None:
        """Copy the parameters `names` into `spare`, or beside them."""
        live = {name: p for p, name in names.items()}
        self._guards, self._states = guards(live.items()), []
        self.copies = copy_into(live, spare)

    def note_states(self, optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> None:
        """Note the tensors of the optimizer's state, with whose they are and their names in it."""
        self._states = [
            (Guard(f"{key!r} of parameter {name!r}", value, value._version), p, key)
            for p, name in names.items()
            for key, value in optimizer.state.get(p, {}).items()
            if isinstance(value, Tensor) and not value.is_inference()
        ]

    def take_copies(self) -> Tensors:
        """Return the copies, and forget them."""
        copies, self.copies = self.copies, {}
        return copies

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise RuntimeError if parameters, or the state, have changed since."""
        broken = [guard.what for guard in self._guards if guard.broken]
        if not broken:  # `p.data` edits are seen by value only
            broken = changed(self.copies, {guard.what: guard.tensor for guard in self._guards})
        if broken:
            raise RuntimeError(
                f"parameter {broken[0]!r} was changed between two recorded steps (a clamp, a loaded state): "
                "that is not part of the record; record the steps after the change only"
            )
        for guard, p, key in self._states:
            if optimizer.state.get(p, {}).get(key) is not guard.tensor or guard.broken:
                raise RuntimeError(
                    f"the optimizer's state, {guard.what}, was changed between two recorded steps (cleared, loaded, "
                    "damped): that is not part of the record; record the steps after the change only"
                )
