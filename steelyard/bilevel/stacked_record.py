"""Record the last steps of a stacked run, and give every member its own record: that of a run by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from steelyard._support._modules import parameters_of
from steelyard._support._nested import named_tensors
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.integrity import guards, projection
from steelyard.bilevel.kept_update import copy_into, keep_update
from steelyard.bilevel.objective import WeightedLoss
from steelyard.bilevel.optimizers import SUPPORTED
from steelyard.bilevel.stacked import Stacked
from steelyard.bilevel.step import Conditions, Findings, Step, random_state
from steelyard.bilevel.trajectory import Trajectory

__all__ = ["Part", "StackedRecord"]

Part: TypeAlias = tuple[Batch, Tensor]
"""A member's batch, and its weights ``(batch,)``."""


class StackedRecord:
    """The last steps of a run of `Stacked` modules, member by member.

    What an estimator makes of a member's record it checks against that member alone: its module, its batch, its
    weights, and its share of the gradient that the optimizer used.

    Args:
        stacked: what is trained.
        optimizer: of its stacks, one of `SUPPORTED`.
        members: the modules, which are to hold the parameters after the last step (`Stacked.put_back`).
        window: more than one step is recorded, and each notes a projection of its gradient.
    """

    def __init__(
        self, stacked: Stacked, optimizer: torch.optim.Optimizer, members: Sequence[nn.Module], window: bool
    ) -> None:
        trained = set(parameters_of(optimizer))
        self._names = {p: name for name, p in stacked.stacks.items() if p in trained}
        self._optimizer, self._members, self._window = optimizer, members, window
        self._steps: list[list[Step]] = [[] for _ in members]

    def note(self, parts: Sequence[Part]) -> None:
        """Note a step between ``backward()`` and ``optimizer.step()``: of every member, what it is taken on."""
        for steps in self._steps:
            for earlier in steps:
                earlier.findings.gradient = None
        live = {name: p for p, name in self._names.items()}
        whole = Step(*parts[0], _conditions(self._members[0]))
        keep_update(whole, self._optimizer, self._names, SUPPORTED[type(self._optimizer)].keep, full_state=False)
        whole.parameters = copy_into(live, {})
        whole.skipped = frozenset(name for name, p in live.items() if p.grad is None)
        gradient = {name: p.grad for name, p in live.items() if p.grad is not None}
        for number, (steps, member, part) in enumerate(zip(self._steps, self._members, parts, strict=True)):
            own = {name: one[number] for name, one in gradient.items()}
            steps.append(
                Step(
                    *part,
                    _conditions(member),
                    Findings(
                        guards=guards(self._read(member, *part)),
                        gradient={name: (one, one._version) for name, one in own.items()},
                        projected=projection(own) if self._window else None,
                    ),
                    parameters={name: one[number] for name, one in whole.parameters.items()},
                    state={name: _state_of(number, live[name], state) for name, state in whole.state.items()},
                    groups=whole.groups,
                    skipped=whole.skipped,
                )
            )

    def trajectories(self, objectives: Sequence[WeightedLoss]) -> list[Trajectory]:
        """Return every member's record, with the inner loss that is its own."""
        found = []
        for member, objective, steps in zip(self._members, objectives, self._steps, strict=True):
            live, names = dict(member.named_parameters()), tuple(steps[-1].parameters)
            after = copy_into({name: live[name] for name in names}, {})
            found.append(Trajectory(member, objective, steps, type(self._optimizer), names, after))
        return found

    def _read(self, member: nn.Module, batch: Batch, weight: Tensor) -> list[tuple[str, Tensor]]:
        """Return what a replay of the member's step reads and must find as it was, with what to call it."""
        trained = set(self._names.values())
        others = [(f"parameter {name!r}", p) for name, p in member.named_parameters() if name not in trained]
        return [*named_tensors("inputs", batch.inputs), ("targets", batch.targets), ("weight", weight), *others]


def _conditions(member: nn.Module) -> Conditions:
    buffers = {name: one.detach().clone() for name, one in member.named_buffers()}
    modes = tuple(module.training for module in member.modules())
    return Conditions(buffers, modes, random_state(member), autocast=None)


def _state_of(number: int, stack: Tensor, state: dict[str, Any]) -> dict[str, Any]:
    """Return a member's part of the state of a parameter; what has no entry a member (a step count) is the same."""
    return {
        key: value[number] if isinstance(value, Tensor) and value.shape == stack.shape else value
        for key, value in state.items()
    }
