"""The recorded end of an inner run, and each step of it as a pure function of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from steelyard.bilevel.batch import Batch
from steelyard.bilevel.integrity import Guard, fingerprint
from steelyard.bilevel.objective import Objective, WeightedLoss
from steelyard.bilevel.sweep.composites import Composites, WithoutPadding
from steelyard.bilevel.sweep.graph_record import Tape
from steelyard.distributed import ALONE, Ranks

__all__ = ["Step", "Tensors", "Trajectory", "swapped"]

Tensors: TypeAlias = dict[str, Tensor]
"""Tensors by parameter (or buffer) name."""


@dataclass
class Step:
    """One recorded optimizer step: everything that decides where it led.

    Attributes:
        batch: the samples.
        weight: ``(batch,)`` their weights.
        parameters: the optimised parameters before the step, as `kept` says.
        state: optimizer state before the step, by parameter; only the entries that the pull-back reads.
        full_state: all of the optimizer state, where the recorder was asked for it (`Unrolled`), and of checkpoints.
        kept: how parameters and states are stored; `storage.backward` gives them whole.
        checkpoint: steps after it may be replayed from it; `state` is then part of `full_state`.
        groups: the optimizer's hyperparameters at the step (a schedule moves them), by parameter.
        buffers: the module's buffers before the forward pass.
        modes: the ``training`` flag of every module.
        rng: the random state of the CPU (and of the CUDA device, if the model is on one) before the forward pass.
        autocast: ``(device type, dtype)`` or None.
        stochastic: the forward pass drew random numbers (dropout).
        coupled: the forward pass mixed samples (BatchNorm in training mode).
        skipped: parameters without a gradient, which the optimizer leaves alone.
        connected: the weights carried a graph when they were recorded.
        guards: what is held by reference, or read live, and must not change: inputs, targets, weights, and the
            parameters that this optimizer does not train.
        gradient: references (no copies) to the gradients and their versions, for the newest step only.
        objective: on several ranks, the inner loss with the divisor that it had; None: the trajectory's.
        tape: what the forward pass computed, for the newest step only, where the recorder was asked for it.
        rewritten: the backward pass wrote to a buffer once more (a checkpoint around BatchNorm).
        rounded: its parameters were kept rounded.
        projected: the gradient that the step used, as `integrity.projection` has it; windows of one step have none.
    """

    batch: Batch
    weight: Tensor
    buffers: Tensors
    modes: tuple[bool, ...]
    rng: tuple[Tensor, Tensor | None]
    autocast: tuple[str, torch.dtype] | None
    stochastic: bool = False
    coupled: bool = False
    parameters: Tensors = field(default_factory=dict)
    state: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    full_state: dict[str, dict[str, Any]] = field(default_factory=dict)
    kept: Literal["whole", "rounded", "moved", "replayed"] = "whole"
    checkpoint: bool = False
    skipped: frozenset[str] = frozenset()
    gradient: dict[str, tuple[Tensor, int]] | None = None
    objective: WeightedLoss | None = None
    tape: Tape | None = None
    rewritten: bool = False
    rounded: bool = False
    projected: Tensor | None = None
    connected: bool = False
    guards: list[Guard] = field(default_factory=list)

    @property
    def separable(self) -> bool:
        """Whether samples can be evaluated in any grouping with the same result."""
        return not (self.stochastic or self.coupled)

    def held_gradient(self) -> Tensors | None:
        """Return the gradient that the step used, where its tensors are still there as they were."""
        if self.gradient is None or any(tensor._version != version for tensor, version in self.gradient.values()):
            return None
        return {name: tensor for name, (tensor, _) in self.gradient.items()}


@contextmanager
def swapped(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Put `tensors`, by name, in the places of the parameters and buffers of `module`, and afterwards these back.

    Every place of a tensor, under whatever name. (`torch.func.functional_call` in torch 2.13 does not give a module
    that stands in two places its parameters back: `tests/bilevel/test_torch_facts.py`.)
    """
    named = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    instead = {id(named[name]): tensor for name, tensor in tensors.items() if name in named}
    held: list[tuple[dict[str, Any], str, Any]] = []
    for one in module.modules():
        stores: tuple[dict[str, Any], ...] = (one._parameters, one._buffers)
        for store in stores:
            held += [(store, key, value) for key, value in store.items() if id(value) in instead]
    try:
        for store, key, value in held:
            store[key] = instead[id(value)]
        yield
    finally:
        for store, key, value in held:
            store[key] = value


@dataclass
class Trajectory:
    """The last T steps of a run, oldest first; the live module holds the parameters after the last one.

    Attributes:
        module: the user's module (unwrapped from `torch.compile` and DDP).
        objective: the inner loss.
        steps: the recorded steps.
        optimizer: the class of the user's optimizer.
        names: of the optimised parameters.
        fingerprint: of their values after the last step.
        earlier: steps before those, which some of them are replayed from (`Storage.checkpoint_every`).
    """

    module: nn.Module
    objective: Objective
    steps: list[Step]
    optimizer: type[torch.optim.Optimizer]
    names: tuple[str, ...]
    fingerprint: Tensor
    earlier: list[Step] = field(default_factory=list)

    @property
    def ranks(self) -> Ranks:
        """The processes that trained together; batches and weights of the record are this one's shares."""
        return self.objective.ranks if isinstance(self.objective, WeightedLoss) else ALONE

    @property
    def index(self) -> Tensor:
        """The ids ``(k,)`` of the samples of the window (of this rank), sorted, each once."""
        return torch.unique(torch.cat([step.batch.index for step in self.steps]))

    def final(self) -> Tensors:
        """Return the optimised parameters after the last step (live, no copies); `check` says if they still are."""
        live = dict(self.module.named_parameters())
        return {name: live[name] for name in self.names}

    def check(self) -> None:
        """Raise RuntimeError if anything that the record refers to was changed since; every estimator calls it."""
        now = fingerprint(self.final().values())
        moved = now != self.fingerprint
        if moved.any():
            first = self.names[int(moved.nonzero()[0])]
            raise RuntimeError(
                f"parameter {first!r} was changed after the last recorded step ({int(moved.sum())} in all): ask for "
                "the hypergradient before training on, or record again"
            )
        for step in [*self.earlier, *self.steps]:
            broken = [guard.what for guard in step.guards if guard.broken]
            if broken and broken[0].startswith("parameter"):
                raise RuntimeError(
                    f"{broken[0]}, which the optimizer did not train in a recorded step, was changed after it (by "
                    "another optimizer, or trained since add_param_group): record the steps after that change only"
                )
            if broken:
                raise RuntimeError(
                    f"{broken[0]} of a recorded step was written to after the step; the record holds a reference: ask "
                    "for the hypergradient first, or give the recorder a tensor of its own (clone it)"
                )

    def objective_of(self, step: Step) -> Objective:
        """Return the inner loss of `step`; on several ranks that of this rank's share, averaged over ranks later."""
        return step.objective or self.objective

    def replay(
        self,
        step: Step,
        parameters: Mapping[str, Tensor],
        function: Callable[..., Any],
        *args: Any,
        exactly: bool = False,
        composites: bool = False,
    ) -> Any:
        """Return ``function(module, *args)`` at `parameters` under the conditions of `step` (mode, precision, masks).

        What differentiates the outcome in reverse belongs into `function`: a backward pass may read the module once
        more (`torch.utils.checkpoint`, a hook), and afterwards that holds its live parameters again.

        Args:
            step, parameters, function, args: as above.
            exactly: take the kernels that the training took, bit for bit; no transformation may be around.
            composites: take operators apart that torch can differentiate once only (`sweep.composites`).
        """
        tensors = self._tensors(parameters, step.buffers)
        taken_apart = Composites() if composites else nullcontext()
        with self._conditions(step, not exactly), taken_apart, swapped(self.module, tensors):
            return function(self.module, *args)

    def loss(self, step: Step, parameters: Mapping[str, Tensor]) -> Tensor:
        """Replay the inner loss of `step` at `parameters`, to differentiate it forward."""
        return self.replay(step, parameters, self.objective_of(step), step.batch, step.weight, composites=True)

    def sample_losses(self, step: Step, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Replay the per-sample losses ``(batch,)`` of `batch` at `parameters` as in `step`."""
        return self.replay(step, parameters, self.weighted.sample_losses, batch)

    @property
    def is_weighted(self) -> bool:
        """Whether the objective is a `WeightedLoss` that is summed up as those are."""
        return isinstance(self.objective, WeightedLoss) and type(self.objective).__call__ is WeightedLoss.__call__

    @property
    def weighted(self) -> WeightedLoss:
        """The objective, where it is a `WeightedLoss`; TypeError with the remedy otherwise."""
        if self.is_weighted:
            assert isinstance(self.objective, WeightedLoss)
            return self.objective
        raise TypeError(
            "gradients for sample weights need a WeightedLoss objective (a subclass may change sample_losses, not "
            f"__call__), got {type(self.objective).__name__}; "
            "for another inner loss use `estimator.tensors(trajectory, outer, [tensor, ...])`"
        )

    def weighted_of(self, step: Step) -> WeightedLoss:
        """Return the `WeightedLoss` of `step`; see `objective_of`."""
        return step.objective or self.weighted

    def evaluate(self, outer, parameters: Mapping[str, Tensor]) -> Tensor:  # type: ignore[no-untyped-def]
        """Evaluate `outer(module)` at `parameters`; buffers, modes and random state are left as they were."""
        with self._conditions(None), WithoutPadding(), swapped(self.module, self._tensors(parameters, self._buffers())):
            return scalar(outer(self.module))

    def _buffers(self) -> Tensors:
        return dict(self.module.named_buffers())

    def _tensors(self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> Tensors:
        # Buffers are cloned because BatchNorm writes its running statistics into whatever it is given.
        # One that requires a gradient is somebody's hyperparameter, and stays connected.
        copies = {name: value if value.requires_grad else value.detach().clone() for name, value in buffers.items()}
        return {**parameters, **copies}

    @contextmanager
    def _conditions(self, step: Step | None, transformed: bool = True) -> Iterator[None]:
        """Restore the conditions of a step (None: keep the present ones), and afterwards those of the caller."""
        modules = list(self.module.modules())
        modes = [module.training for module in modules]
        try:
            with torch.random.fork_rng(devices=cuda_devices(self.module)):
                if step is None:
                    yield
                    return
                device = next(self.module.parameters()).device.type
                for module, training in zip(modules, step.modes, strict=True):
                    module.training = training
                set_random_state(self.module, step.rng)
                dtype = step.autocast[1] if step.autocast else torch.bfloat16
                # The cache of autocast would hand a cast made outside of the transformation to the inside. Of the
                # attention kernels only the plain one can be differentiated forward.
                enabled = step.autocast is not None
                with (
                    torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=not transformed),
                    sdpa_kernel(SDPBackend.MATH) if transformed else nullcontext(),
                ):
                    yield
        finally:
            for module, training in zip(modules, modes, strict=True):
                module.training = training


def scalar(value: Any) -> Tensor:
    """Return what an outer loss returned as a tensor without dimensions; ValueError if it is no scalar."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"outer must return a scalar tensor, got {got}")
    return value.reshape(())


def cuda_devices(module: nn.Module) -> list[int]:
    """Return the ordinal of the CUDA device of the first parameter, as a list, or an empty list."""
    first = next(module.parameters(), None)
    return [first.get_device()] if first is not None and first.is_cuda else []


def random_state(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return the random state of the CPU and of the module's CUDA device."""
    devices = cuda_devices(module)
    return torch.get_rng_state(), torch.cuda.get_rng_state(devices[0]) if devices else None


def set_random_state(module: nn.Module, state: tuple[Tensor, Tensor | None]) -> None:
    """Restore what `random_state` returned."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], cuda_devices(module)[0])
