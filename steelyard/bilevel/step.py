"""One recorded optimizer step: what its forward pass ran under, what it moved, and what was seen of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from steelyard._support._modules import first_parameter
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.clipping import Clip
from steelyard.bilevel.gradient_graph import GradientGraph
from steelyard.bilevel.integrity import Guard
from steelyard.bilevel.objective import Divisor
from steelyard.bilevel.sweep.graph_record import ForwardRecord
from steelyard.bilevel.sweep.layer_record import LayerRecord

__all__ = [
    "Conditions",
    "Findings",
    "MicroBatch",
    "Step",
    "Tensors",
    "cuda_devices",
    "micro_batches",
    "random_state",
    "set_random_state",
]

Tensors: TypeAlias = dict[str, Tensor]
"""Tensors by parameter (or buffer) name."""


@dataclass(frozen=True)
class Conditions:
    """What the forward pass of a step ran under, beside its parameters: a replay restores it.

    Attributes:
        buffers: the module's buffers before the forward pass.
        modes: the ``training`` flag of every module.
        rng: the random state of the CPU (and of the CUDA device, if the model is on one) before the forward pass.
        autocast: ``(device type, dtype)`` or None.
        divisor: on several ranks, what the inner loss divided its weighted sum by; None: it follows from the weights.
    """

    buffers: Tensors
    modes: tuple[bool, ...]
    rng: tuple[Tensor, Tensor | None]
    autocast: tuple[str, torch.dtype] | None
    divisor: Divisor | None = None


@dataclass
class Findings:
    """What was seen of a step while it ran; `gradient`, `forward_record` and `losses` are of the newest step only.

    Attributes:
        stochastic: the forward pass drew random numbers (dropout).
        coupled: the forward pass mixed samples (BatchNorm in training mode).
        rewritten: the backward pass wrote to a buffer once more (a checkpoint around BatchNorm).
        moved: after the step, and before the next, a forward pass that is not recorded wrote to a buffer.
        connected: the weights carried a graph when they were recorded.
        guards: what is held by reference, or read live, and must not change: inputs, targets, weights, and the
            parameters that this optimizer does not train.
        gradient: references (no copies) to the gradients that the optimizer used, and their versions.
        projected: that gradient as `integrity.projection` has it; windows of one step have none.
        forward_record: what the forward pass computed, where the recorder was asked for it.
        losses: ``(batch,)`` of that forward pass, on its graph.
        graph: of the gradient, where the recorder was asked for it and the step has one.
        mixed: its replay in float64 meets float32 of the module's or the loss's own (`_float64_throughout`).
        fault: why the step has no derivative that is known to be right, as an error says it; empty: it has.
    """

    stochastic: bool = False
    coupled: bool = False
    rewritten: bool = False
    moved: bool = False
    connected: bool = False
    guards: list[Guard] = field(default_factory=list)
    gradient: dict[str, tuple[Tensor, int]] | None = None
    projected: Tensor | None = None
    forward_record: ForwardRecord | LayerRecord | None = None
    losses: Tensor | None = None
    graph: GradientGraph | None = None
    mixed: bool = False
    fault: str = ""

    @property
    def separable(self) -> bool:
        """Whether samples can be evaluated in any grouping with the same result."""
        return not (self.stochastic or self.coupled)

    def bare(self) -> Findings:
        """Return them for a step that is not quite the recorded one: in another precision, say."""
        return replace(self, gradient=None, projected=None, forward_record=None, losses=None, graph=None, guards=[])

    def held_gradient(self) -> Tensors | None:
        """Return the gradient that the step used, where its tensors are still there as they were."""
        if self.gradient is None or any(tensor._version != version for tensor, version in self.gradient.values()):
            return None
        return {name: tensor for name, (tensor, _) in self.gradient.items()}


class MicroBatch(NamedTuple):
    """One of the batches whose gradients an optimizer step added up, but for the last; fields as `Step` has them."""

    batch: Batch
    weight: Tensor
    conditions: Conditions
    findings: Findings
    scale: float


@dataclass
class Step:
    """One recorded optimizer step: everything that decides where it led.

    The optimizer used the gradient ``clips(sum of scale x gradient of the loss)``, the sum over the micro-batches. Most
    steps have one micro-batch, of scale 1, and no clip.

    Attributes:
        batch: the samples (of the last micro-batch).
        weight: ``(batch,)`` their weights.
        conditions: of its forward pass.
        findings: what was seen of it; gradient and projection are of the whole step.
        scale: what the loop multiplied the loss by.
        accumulated: the micro-batches before, oldest first.
        clips: of the gradient before the optimizer's step, in order.
        parameters: the optimised parameters before the step, as `kept` says.
        state: optimizer state before the step, by parameter; only the entries that the pull-back reads.
        full_state: all of the optimizer state, where the recorder was asked for it (`Unrolled`), and of checkpoints.
        groups: the optimizer's hyperparameters at the step (a schedule moves them), by parameter.
        skipped: parameters without a gradient, which the optimizer leaves alone.
        kept: how parameters and states are stored; `storage.newest_first` gives them whole.
        checkpoint: steps after it may be replayed from it; `state` is then part of `full_state`.
        rounded: its parameters were kept rounded.
    """

    batch: Batch
    weight: Tensor
    conditions: Conditions
    findings: Findings = field(default_factory=Findings)
    parameters: Tensors = field(default_factory=dict)
    state: dict[str, dict[str, Any]] = field(default_factory=dict)
    full_state: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: frozenset[str] = frozenset()
    kept: Literal["whole", "rounded", "moved", "replayed"] = "whole"
    checkpoint: bool = False
    rounded: bool = False
    scale: float = 1.0
    accumulated: tuple[MicroBatch, ...] = ()
    clips: tuple[Clip, ...] = ()

    @property
    def micro_batches(self) -> tuple[Step, ...]:
        """The step once for each of its micro-batches, oldest first; where there is one, the step itself.

        Of several each is a view of its forward pass: nothing is known of its gradient by itself.
        """
        if not self.accumulated:
            return (self,)
        last = MicroBatch(self.batch, self.weight, self.conditions, self.findings, self.scale)
        return tuple([self._alone(one) for one in (*self.accumulated, last)])

    def trained(self, gradients: Mapping[str, Tensor]) -> Tensors:
        """Return those of the parameters that the step had a gradient of."""
        return {name: g for name, g in gradients.items() if name not in self.skipped}

    def _alone(self, one: MicroBatch) -> Step:
        findings = replace(one.findings, gradient=None, projected=None, losses=None, graph=None)
        return replace(self, **one._replace(findings=findings)._asdict(), accumulated=(), clips=())


def micro_batches(steps: Iterable[Step]) -> list[Step]:
    """Return the micro-batches of all `steps`, in order."""
    return [one for step in steps for one in step.micro_batches]


def cuda_devices(module: nn.Module) -> list[int]:
    """Return the ordinal of the CUDA device of the first parameter, as a list, or an empty list."""
    first = first_parameter(module)
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
