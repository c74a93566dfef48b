"""How the steps before the newest are kept: whole, rounded, on another device, or as checkpoints to replay from.

The newest step is whole and beside the model in every case: a hypergradient with T = 1 is what it would have been.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from steelyard._support import _check
from steelyard.bilevel.replay import backward_into, leaves_of
from steelyard.bilevel.step import Step, Tensors
from steelyard.bilevel.trajectory import Trajectory

__all__ = ["WHOLE", "Storage", "newest_first"]

States: TypeAlias = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Storage:
    """What a `Recorder` keeps of the T - 1 steps before the newest, and where.

    In units of P, the size of the parameters, a whole step takes P with SGD and 3 P with Adam (parameters and two
    moments). Measured: results/benchmarks/memory.md.

    Attributes:
        dtype: `torch.bfloat16`, for SGD only, halves float32 steps: parameters are kept as their rounded difference to
            those of the next step. Entry by entry they are then off by at most 2^-8 of the sum of the moves since,
            |theta_{s+1} - theta_s|, plus a rounding of theta for each. None: as they are. (The derivative of an
            adaptive update is a small difference of large terms at a cold start, which rounding swamps: it was off by
            220 % for Adam on a ResNet-18. The recorder refuses it.)
        device: where they are moved to, "cpu" for a model on a GPU, say; None (or the device of the parameters): they
            stay where they are. The copy is not overlapped with training.
        checkpoint_every: c > 1 keeps of every c-th step the parameters and the whole optimizer state, and of those in
            between nothing but what all have by reference (batch, weights) and their random state and buffers.
            An estimator replays each stretch once: c - 1 training steps in c, and room for one stretch. The steps are
            bit for bit those recorded, which is checked against the next step that was kept. Up to c - 1 more batches
            are held.

    Raises:
        ValueError: a dtype other than bfloat16, c < 1, or both a dtype and checkpoints, which must be exact.
    """

    dtype: torch.dtype | None = None
    device: torch.device | str | None = None
    checkpoint_every: int = 1

    def __post_init__(self) -> None:
        _check.choice("dtype", self.dtype, [None, torch.bfloat16])
        _check.integer("checkpoint_every", self.checkpoint_every, low=1)
        if self.dtype is not None and self.checkpoint_every > 1:
            raise ValueError(
                f"dtype={self.dtype} with checkpoint_every={self.checkpoint_every}: a replay starts from exact "
                "parameters; use one or the other"
            )

    def starts_stretch(self, window: deque[Step]) -> bool:
        """Whether the step after those of `window` is a checkpoint."""
        if self.checkpoint_every == 1:
            return False
        since = next((count for count, step in enumerate(reversed(window), start=1) if step.checkpoint), None)
        return since is None or since >= self.checkpoint_every

    def make_room(self, window: deque[Step], steps: int) -> Tensors:
        """Drop the oldest step of a full window; return its parameters where others may be written over them."""
        if self.checkpoint_every > 1 or len(window) < steps:
            return {}
        oldest = window.popleft()
        return oldest.parameters if oldest.kept == "whole" else {}

    def append(self, window: deque[Step], step: Step, steps: int) -> None:
        """Add the newest step to a window of `steps`, and shrink the one before."""
        if window:
            self._shrink(window[-1], step)
        window.append(step)
        if self.checkpoint_every > 1:
            oldest = max(0, len(window) - steps)
            while window[oldest].kept == "replayed":
                oldest -= 1
            for _ in range(oldest):
                window.popleft()

    def _shrink(self, step: Step, newer: Step) -> None:
        if self.checkpoint_every > 1 and not step.checkpoint:
            step.parameters, step.state, step.kept = {}, {}, "replayed"
            return
        if self.dtype is not None:
            step.kept = "rounded"
            step.parameters = {name: _difference(newer.parameters[name], p) for name, p in step.parameters.items()}
        if self.device is not None:
            step.kept = "moved" if step.kept == "whole" else step.kept
            step.parameters, step.state, step.full_state = (
                _mapped(one, lambda tensor: tensor.to(self.device) if tensor.ndim else tensor)
                for one in (step.parameters, step.state, step.full_state)
            )


WHOLE = Storage()


def newest_first(run: Trajectory, count: int) -> Iterator[Step]:
    """Yield the last `count` steps of `run`, the newest first, whole.

    Raises:
        RuntimeError: a replay from a checkpoint did not lead where the run did.
    """
    steps = [*run.earlier, *run.steps]
    position, last = len(steps) - 1, len(steps) - count
    newer = steps[-1]
    while position >= last:
        if steps[position].kept == "replayed":
            first = next(place for place in range(position, -1, -1) if steps[place].checkpoint)
            stretch = _replayed(run, steps[first : position + 1], newer)
        else:
            stretch = [_whole(run, steps[position], newer)]
        while stretch and position >= last:
            newer = stretch.pop()
            yield newer
            position -= 1


def _whole(run: Trajectory, step: Step, newer: Step) -> Step:
    """Return `step` as it was recorded, `newer` being the whole step after it."""
    found = step
    if step.kept != "whole":
        parameters = {name: _restored(newer.parameters[name], p) for name, p in step.parameters.items()}
        state, full_state = (
            {name: _mapped(one, partial(_like, parameters[name])) for name, one in states.items()}
            for states in (step.state, step.full_state)
        )
        rounded = step.kept == "rounded"
        found = replace(step, kept="whole", rounded=rounded, parameters=parameters, state=state, full_state=full_state)
    if step.checkpoint:
        found = replace(found, state=_kept(run, found.full_state))
    return found


def _replayed(run: Trajectory, steps: list[Step], newer: Step) -> list[Step]:
    """Return the steps from a checkpoint on, by training from it again; the last must lead to `newer`."""
    first = _whole(run, steps[0], newer)
    parameters, state = first.parameters, _mapped(first.full_state, torch.clone)
    found = []
    for step in steps:
        found.append(replace(step, kept="whole", parameters=parameters, state=_kept(run, state)))
        parameters, state = _advance(run, found[-1], state)
    wrong = [name for name, p in parameters.items() if not torch.equal(p, newer.parameters[name])]
    if wrong or parameters.keys() != newer.parameters.keys():
        raise RuntimeError(
            f"the steps between two checkpoints cannot be replayed: {len(wrong)} of {len(parameters)} parameters end "
            f"elsewhere{f' ({wrong[0]!r} first)' if wrong else ''}. What is not recorded moved the run (gradients "
            "that something changed, a compiled model, kernels of a GPU that are not deterministic, several ranks); "
            "record whole steps, checkpoint_every=1"
        )
    return found


def _advance(run: Trajectory, step: Step, state: States) -> tuple[Tensors, States]:
    """Take `step` again; return parameters and optimizer state after it. `state` is written over."""
    leaves = leaves_of(run, {name: p.detach().clone() for name, p in step.parameters.items()})

    def body(module: nn.Module, one: Step) -> None:
        value = run.inner_loss(one, module)
        backward_into(module, value, leaves, None if one.scale == 1.0 else torch.full_like(value, one.scale))

    with torch.enable_grad():
        for one in step.micro_batches:
            run.replay(one, leaves, body, one, exactly=True)
    for clip in step.clips:
        clip.repeat(leaves)
    groups: dict[int, dict[str, Any]] = {}
    for name, leaf in leaves.items():
        if name in step.skipped:
            leaf.grad = None
        elif leaf.grad is None:
            leaf.grad = torch.zeros_like(leaf)
        settings = step.groups[name]
        groups.setdefault(id(settings), {**settings, "params": []})["params"].append(leaf)
    optimizer = run.optimizer(list(groups.values()))  # type: ignore[call-arg]
    for name, leaf in leaves.items():
        if state[name]:
            optimizer.state[leaf] = state[name]
    optimizer.step()
    after = {name: dict(optimizer.state.get(leaf, {})) for name, leaf in leaves.items()}
    return {name: leaf.detach() for name, leaf in leaves.items()}, after


def _kept(run: Trajectory, full_state: States) -> States:
    """Return what the pull-back reads of the whole optimizer state."""
    return {name: run.pullback.keep(one) for name, one in full_state.items()}


def _difference(newer: Tensor, older: Tensor) -> Tensor:
    return older if older.element_size() <= 2 else (newer - older).to(torch.bfloat16)


def _restored(newer: Tensor, kept: Tensor) -> Tensor:
    """Return the older parameter; what has another type than the newer one is a difference."""
    kept = kept.to(newer.device)
    return kept if kept.dtype == newer.dtype else newer - kept


def _like(parameter: Tensor, state: Tensor) -> Tensor:
    """Return a moment where it was. (A count of steps has no dimension, and stays on the CPU.)"""
    return state.to(parameter.device) if state.ndim else state


def _mapped(values: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return nested dicts with `function` of every tensor."""
    if isinstance(values, dict):
        return {key: _mapped(one, function) for key, one in values.items()}
    return function(values) if isinstance(values, Tensor) else values
