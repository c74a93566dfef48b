"""Record the last T steps of an ordinary training run."""

from __future__ import annotations

import math
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from steelyard._support import _check
from steelyard._support._agreement import optimizer_settings, sample_kinds
from steelyard._support._check import Numbers
from steelyard._support._nested import named_tensors
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.clipping import Clip, NormClip, ValueClip
from steelyard.bilevel.integrity import Guard, fingerprint, guards, projection
from steelyard.bilevel.objective import Divisor, Objective, WeightedLoss, summed_by_weight
from steelyard.bilevel.optimizers import ElementwisePullback, ParameterUpdate, pullback_for
from steelyard.bilevel.step import Conditions, Findings, MicroBatch, Step, Tensors, random_state
from steelyard.bilevel.storage import WHOLE, Storage
from steelyard.bilevel.sweep.graph_record import ForwardRecord, Recording
from steelyard.bilevel.trajectory import Trajectory

__all__ = ["Recorder"]


class Recorder:
    """Keeps what the last `steps` optimizer steps started from; training itself stays the user's loop.

    Use `recorder.loss(batch, weight)` where the loop would have called the inner loss; everything else
    (``zero_grad``, ``backward``, ``optimizer.step``, schedulers, autocast, `GradScaler`) stays as it was.
    A step whose loss did not come from the recorder empties the window, so recording only the last steps of
    a long run costs the others nothing.

    Gradients of several recorded losses that the loop accumulates before one ``optimizer.step()`` are one step of
    several micro-batches. The loop may divide each loss by a whole number (``(recorder.loss(batch, weight) /
    2).backward()``); for another constant there is ``recorder.loss(batch, weight, scale=...)``. To clip, call
    `clip_grad_norm_` or `clip_grad_value_` of the recorder in the place of those in `torch.nn.utils`.

    What is recorded is the loss, clips by the recorder and the optimizer's step. A gradient that something else
    changed in between (a clip that the recorder did not see, an added loss) is noticed when an estimator is asked, at
    every step of the window; with ``steps=1`` as long as that gradient is there (not after
    ``zero_grad(set_to_none=False)``). A number that the loop multiplies the loss by is a constant: that it was
    computed of the weights is not seen, and where weights decide it, it belongs into the objective. Not seen at all:
    randomness of Python or of a generator of the module's own, and running statistics other than BatchNorm's and
    InstanceNorm's.

    Memory: per step one copy of the parameters and of the optimizer state that the pull-back reads (none for SGD;
    two moments for Adam); batches and weights by reference; the gradients of the newest step by reference. `Storage`
    says how to do with less.

    Args:
        model: the module; `torch.compile` and DDP wrappers are seen through when steps are replayed. Under DDP on
            several ranks each one records its share of the batch, and asks for its own samples' derivatives; all ranks
            must ask, for they exchange sums.
        optimizer: over parameters of `model`; of `torch.optim`, or any other whose update is elementwise (that is
            found out by steps on copies, before training: `ElementwisePullback`).
        objective: the inner loss, usually a `WeightedLoss`; under DDP one with ``ranks=Processes()``.
        steps: T, how many steps to keep.
        full_state: also copy the optimizer state that only `Unrolled` needs.
        reuse: also keep, for the newest step, the activations that its backward pass needed (and where samples do not
            couple, the output gradients of the layers), by reference. ``Truncated(steps=1)`` on that step's own samples
            then takes two forward passes in the place of three, or one where samples do not couple. Memory: one
            batch's activations, until the trajectory is dropped.
        storage: how the steps before the newest are kept; default whole, beside the parameters.

    Raises:
        TypeError: an optimizer whose update is not elementwise, with what gave it away; a complex parameter.
        ValueError: a rounded storage with an adaptive optimizer, a hyperparameter that the pull-back cannot be finite
            for (``eps=0``), an optimized tensor that is not a parameter of `model`, or ranks of `objective` that are
            not those of `model`.

    Example:
        >>> from functools import partial
        >>> import torch.nn.functional as F
        >>> from steelyard.bilevel import Truncated, WeightedLoss
        >>> model = nn.Linear(2, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> objective = WeightedLoss(partial(F.cross_entropy, reduction="none"))
        >>> data = Batch.of(torch.randn(8, 2), torch.arange(8) % 2)
        >>> with Recorder(model, optimizer, objective, steps=2) as recorder:
        ...     for _ in range(5):
        ...         loss = recorder.loss(data, torch.ones(8))
        ...         optimizer.zero_grad()
        ...         loss.backward()
        ...         optimizer.step()
        ...     trajectory = recorder.trajectory()
        >>> Truncated(steps=2)(trajectory, lambda m: m.weight.square().sum()).shape
        torch.Size([8])
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        steps: int = 1,
        full_state: bool = False,
        reuse: bool = False,
        storage: Storage = WHOLE,
    ) -> None:
        self._pullback = pullback_for(optimizer)
        self._differences = self._pullback if isinstance(self._pullback, ElementwisePullback) else None
        self._used: Tensors = {}
        _check_ranks(model, objective)
        self._model = model
        self._module = unwrap(model)
        self._optimizer = optimizer
        self._objective = objective
        self._full_state, self._reuse = full_state, reuse
        self._names = _names(self._module, optimizer)
        self._steps = _check.integer("steps", steps, low=1)
        self._storage = storage if steps > 1 else WHOLE
        if storage.dtype is not None and not self._pullback.linear:
            raise ValueError(
                f"storage.dtype={storage.dtype} is for SGD: the derivative of {type(optimizer).__name__}'s update is "
                "lost in that rounding; use Storage(checkpoint_every=...) or whole steps"
            )
        if self._differences is not None and self._storage.checkpoint_every > 1:
            raise ValueError(
                f"storage.checkpoint_every={storage.checkpoint_every} takes steps again by a new optimizer, which is "
                f"not known how to make for {type(optimizer).__name__}; record whole steps, checkpoint_every=1"
            )
        self._window: deque[Step] = deque()
        self._passes: list[_Pass] = []
        self._clips: list[Clip] = []
        self._fault = ""
        self._in_backward = False
        self._depth = 0
        self._norm: Tensor | None = None
        self._agreed = False
        self._after: list[Guard] = []
        self._mark = torch.zeros(0, dtype=torch.int64)
        self._written: list[int] = []
        self._handles: list[RemovableHandle] = []
        self._listen()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the hooks and drop the record. The model and the optimizer stay as they are."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._window.clear()
        self._forget()

    def _forget(self) -> None:
        """Drop what was noted since the last step."""
        self._passes, self._clips, self._fault, self._norm = [], [], "", None

    @property
    def _pending(self) -> Step | None:
        """The newest loss that no step has followed."""
        return self._passes[-1].step if self._passes else None

    def loss(self, batch: Batch, weight: Tensor | Numbers, scale: float | int = 1.0) -> Tensor:
        """Return ``scale * objective(model, batch, weight)`` and note what is needed to replay it.

        Args:
            batch: the samples of this step.
            weight: ``(batch,)`` their weights.
            scale: what the loss is multiplied by, a number that does not depend on the weights: the share of a
                micro-batch in what is accumulated.

        Raises:
            ValueError: `weight` does not fit the batch; `scale` is 0 or not finite.
            RuntimeError: the recorder is closed; on several ranks, the forward pass mixed samples (BatchNorm in
                training mode).
            RankError: at the first loss, the ranks differ in settings of the optimizer, the objective or the recorder,
                or in the types of their samples.

        A loss that is only read is replaced by the next, and so is one whose gradient is cleared before a step (one
        that a `GradScaler` skipped, say).
        """
        scale = _check.in_range("scale", scale)
        if not scale:
            raise ValueError("scale is 0: leave the micro-batch out")
        weight = weight if isinstance(weight, Tensor) else _check.floats("weight", weight)
        self._check(batch, weight)
        if not self._agreed:
            self._agree(batch, weight)
        self._passes = [one for one in self._passes if one.arrival.of_use]
        self._in_backward, self._depth = False, 0  # where a backward pass or a step has failed
        # Before this forward pass takes memory of its own:
        for earlier in [*self._window, *(one.step for one in self._passes)]:
            earlier.findings.gradient = earlier.findings.forward_record = None
        if any(p not in self._names for group in self._optimizer.param_groups for p in group["params"]):
            self._names = _names(self._module, self._optimizer)  # add_param_group
        modules = list(self._module.modules())
        buffers = dict(self._module.named_buffers()) if any(module._buffers for module in modules) else {}
        held = [*self._untrained(), *((f"buffer {name!r}", one) for name, one in buffers.items() if one.requires_grad)]
        read = [*named_tensors("inputs", batch.inputs), ("targets", batch.targets)]
        findings = Findings(
            connected=weight.grad_fn is not None,
            guards=guards([*read, ("weight", weight), *held]),
        )
        conditions = Conditions(
            buffers={name: one if one.requires_grad else one.detach().clone() for name, one in buffers.items()},
            modes=tuple([module.training for module in modules]),
            rng=random_state(self._module),
            autocast=_autocast(self._module),
            divisor=_divisor_of_all(self._objective, weight),
        )
        versions = _versions(modules)
        if self._pending is not None:
            self._pending.findings.rewritten |= self._written != versions
        value, findings.forward_record = self._evaluate(batch, weight, conditions.divisor)
        # Detected by effect, not by class only, so that functional dropout and home-made norms are seen too.
        findings.stochastic = not _same_state(conditions.rng, random_state(self._module))
        # Versions cost nothing but are not enough: DDP writes to all buffers what they were, `F.batch_norm` to some
        # without counting it.
        wrote = conditions.divisor is None and versions != _versions(modules)
        findings.coupled = wrote or _counts_no_batches(modules) or _changed(self._module, conditions.buffers)
        if conditions.divisor is not None and findings.coupled:
            raise RuntimeError(_COUPLED)
        if findings.forward_record is not None:
            findings.forward_record.listening = not findings.coupled
        self._written = _versions(modules)
        value = value if scale == 1.0 else value * scale
        arrival = _Arrival(scale)
        self._passes.append(_Pass(Step(batch, weight.detach(), conditions, findings, scale=scale), arrival))
        if value.requires_grad:
            value.register_hook(_Hook(self, arrival))
        self._listen()
        return value

    def clip_grad_norm_(
        self,
        parameters: Tensor | Iterable[Tensor],
        max_norm: float | int,
        norm_type: float | int = 2.0,
        error_if_nonfinite: bool = False,
        foreach: bool | None = None,
    ) -> Tensor:
        """Clip gradients by their norm as `torch.nn.utils.clip_grad_norm_` does, and note whether it bit.

        Called where the loop would have called that: after ``backward()`` (of the last micro-batch, and after
        ``scaler.unscale_(optimizer)``), before ``optimizer.step()``.

        Args:
            parameters: whose gradients have one norm; all of the optimizer's, or some.
            max_norm, norm_type, error_if_nonfinite, foreach: as torch has them; `norm_type` at least 1.

        Returns:
            The norm before.

        Raises:
            ValueError: `max_norm` < 0, `norm_type` < 1, a parameter given twice, or one with a gradient that the
                optimizer does not train, whose gradient would move the norm.
            RuntimeError: as torch raises where `error_if_nonfinite`.
        """
        max_norm = _check.in_range("max_norm", max_norm, low=0.0)
        norm_type = float(norm_type)
        if not norm_type >= 1:
            raise ValueError(f"norm_type must be at least 1 (or inf), got {norm_type}: no other is a norm")
        taken = self._clipped(parameters)
        norm = nn.utils.clip_grad_norm_(taken, max_norm, norm_type, error_if_nonfinite, foreach)
        names = tuple([self._names[p] for p in taken if p in self._names])
        clip = NormClip(names, max_norm, norm_type, foreach, float(norm))
        if self._passes and clip.factor < 1:
            self._clips.append(clip)
        return norm

    def clip_grad_value_(
        self, parameters: Tensor | Iterable[Tensor], clip_value: float | int, foreach: bool | None = None
    ) -> None:
        """Clip every entry of gradients as `torch.nn.utils.clip_grad_value_` does, and note it.

        Args:
            parameters: whose gradients.
            clip_value: the largest size of an entry, > 0.
            foreach: as torch has it.

        Raises:
            ValueError: as `clip_grad_norm_`.
        """
        clip_value = _check.in_range("clip_value", clip_value, low=0.0, open_low=True)
        taken = self._clipped(parameters)
        nn.utils.clip_grad_value_(taken, clip_value, foreach)
        names = tuple([self._names[p] for p in taken if p in self._names])
        if self._passes and names:
            self._clips.append(ValueClip(names, clip_value, foreach))

    def _clipped(self, parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
        """Return those of `parameters` that have a gradient; what was done to it since backward is noted first."""
        given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        taken = [p for p in given if p.grad is not None]
        if not self._passes:
            return taken
        if len(set(taken)) < len(taken):
            raise ValueError("parameters holds a parameter twice, which torch would clip twice: give each once")
        others = [p for p in taken if p not in self._names]
        if others:
            named: dict[Tensor, str] = {p: repr(name) for name, p in self._module.named_parameters()}
            raise ValueError(
                f"parameter {named.get(others[0], tuple(others[0].shape))} is clipped, but not trained by the recorded "
                "optimizer: clip the parameters of optimizer.param_groups, or set requires_grad_(False) on the others"
            )
        self._settle_scales()
        return taken

    def _settle_scales(self) -> None:
        """Note what each micro-batch's loss was multiplied by, seen from the gradients as they are now.

        Two things multiply: the loop (what arrived at the loss in the backward pass says by how much), and who divided
        the gradients since, as a `GradScaler` does (the norm says by how much).
        """
        passes = [one for one in self._passes if one.arrival.factors]
        if all(one.arrival.settled or one.arrival.factors == [1.0] for one in passes):
            return
        divided = self._divided()
        found = [sum(map(float, one.arrival.factors)) for one in passes]
        shares = [_one_over_whole(factor * divided, 1e-5 if divided != 1.0 else 1e-6) for factor in found]
        if len(set(shares)) > 1 or shares[0] is None:
            told = (
                found[0] if shares[0] is None else next(f for f, s in zip(found, shares, strict=True) if s != shares[0])
            )
            self._fault = _UNKNOWN_SCALE.format(factor=told * divided)
        for one, share in zip(passes, shares, strict=True):
            one.step.scale, one.arrival.settled = one.arrival.scale * (share or 1.0), True

    def _divided(self) -> float:
        """Return what the gradients were multiplied by since the last backward pass, where a loss had another "
        "factor."""
        fused = getattr(self._optimizer, "grad_scale", None)  # under a GradScaler: divided by it in the step itself
        if fused is not None:
            return 1.0 / float(fused)
        if self._norm is None:
            return 1.0
        before, after = float(self._norm), float(_norm_of(self._names))
        ratio = after / before if before > 0 and math.isfinite(before) else 1.0
        return 1.0 if abs(ratio - 1.0) < 1e-5 else ratio

    def _backward_begins(self, arrival: _Arrival, gradient: Tensor) -> None:
        """A backward pass has come to a recorded loss."""
        factor = gradient.detach() if gradient.is_cuda else float(gradient)
        if not self._in_backward:
            self._norm = None
            earlier = [one for one in self._passes if one.arrival.factors]
            if earlier and _cleared(self._names):
                arrival.factors.clear()
                self._passes = [one for one in self._passes if not one.arrival.factors]
                self._clips, self._fault = [], ""
            elif self._clips:
                self._fault = _CLIPPED_BETWEEN
            if len(self._passes) > 1 or isinstance(factor, Tensor) or factor != 1.0:  # (the usual case needs no look)
                self._in_backward = True
                torch.autograd.Variable._execution_engine.queue_callback(self._backward_ends)
        arrival.factors.append(factor)
        arrival.settled = False

    def _backward_ends(self) -> None:
        if self._in_backward:  # once more, behind what others (DDP) have put in the line meanwhile
            self._in_backward = False
            torch.autograd.Variable._execution_engine.queue_callback(self._backward_ends)
            return
        newest = [one.arrival.factors[-1] for one in self._passes if one.arrival.factors]
        if any(isinstance(one, Tensor) or one != 1.0 for one in newest):
            self._norm = _norm_of(self._names)

    def _untrained(self) -> list[tuple[str, Tensor]]:
        """Return the parameters that the optimizer does not train, with what to call them."""
        if all(p in self._names for p in self._module.parameters()):
            return []
        trained = set(self._names.values())
        return [(f"parameter {n!r}", p) for n, p in self._module.named_parameters() if n not in trained]

    def _listen(self) -> None:
        """Have the step's hooks be the last before it and the first after it: others may change gradients or rates."""
        for handle in self._handles:
            handle.remove()
        before = self._optimizer.register_step_pre_hook(self._before_step)
        after = self._optimizer.register_step_post_hook(self._after_step)
        hooks = getattr(self._optimizer, "_optimizer_step_post_hooks", None)
        if isinstance(hooks, OrderedDict) and after.id in hooks:
            hooks.move_to_end(after.id, last=False)
        self._handles = [before, after]

    def _agree(self, batch: Batch, weight: Tensor) -> None:
        """Raise RankError if the ranks would not take the same steps of the same loss."""
        objective, self._agreed = self._objective, True
        if isinstance(objective, WeightedLoss):
            facts = {"steps": self._steps, "storage": self._storage, "normalise": objective.normalise}
            facts |= {"regulariser given": objective.regulariser is not None, "weight": weight.dtype}
            facts |= {**optimizer_settings("optimizer", self._optimizer), **sample_kinds("batch", batch)}
            objective.ranks.agree("the record", facts)

    def _evaluate(self, batch: Batch, weight: Tensor, divisor: Divisor | None) -> tuple[Tensor, ForwardRecord | None]:
        """Return the inner loss and, where asked for and possible, the record of its forward pass."""
        weighted = summed_by_weight(self._objective)
        if weighted is None:
            return self._objective(self._model, batch, weight), None
        if not (self._reuse and self._model is self._module):
            return weighted.reduce(self._model, weighted.sample_losses(self._model, batch), weight, divisor), None
        with Recording({name: p for p, name in self._names.items()}, listen=True) as recording:
            losses = weighted.sample_losses(self._model, batch)
        forward_record = recording.forward_record(losses)
        return weighted.reduce(self._model, losses, weight, divisor), forward_record

    def trajectory(self) -> Trajectory:
        """Return the record and start a new, empty one.

        Raises:
            RuntimeError: no step was recorded, or a loss was recorded without its optimizer step.
        """
        if self._pending is not None:
            raise RuntimeError(
                "a loss was recorded but optimizer.step() has not followed: call it before trajectory(); if a "
                "GradScaler skipped that step, take one more"
            )
        if not self._window:
            raise RuntimeError(
                "no step was recorded: use recorder.loss(batch, weight) as the loss of the training loop"
            )
        steps = list(self._window)
        self._window.clear()
        names = tuple(steps[-1].parameters)
        marks = dict(zip(self._names.values(), self._mark, strict=True))
        mark = torch.stack([marks[name] for name in names])
        earlier, steps = steps[: -self._steps], steps[-self._steps :]
        return Trajectory(
            self._module, self._objective, steps, type(self._optimizer), names, mark, earlier, self._differences
        )

    def _check(self, batch: Batch, weight: Tensor) -> None:
        if not self._handles:
            raise RuntimeError("this recorder is closed")
        if not isinstance(weight, Tensor) or weight.shape != (len(batch),) or not weight.is_floating_point():
            got = f"{weight.dtype} {tuple(weight.shape)}" if isinstance(weight, Tensor) else type(weight).__name__
            raise ValueError(
                f"weight must be a floating-point tensor of shape ({len(batch)},), one a sample of the batch, got {got}"
            )

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._depth += 1
        if self._depth > 1:  # a subclass whose step calls that of its base: the hooks are those of the outermost
            return
        overflow = getattr(optimizer, "found_inf", None)  # a fused optimizer under a GradScaler: it will not move
        if overflow is not None and bool(overflow):
            self._forget()
            return
        if self._pending is None:
            self._window.clear()
            return
        self._check_between_steps()
        step = self._gathered()
        findings = step.findings
        findings.rewritten = self._written != _versions(list(self._module.modules()))
        live = {name: p for p, name in self._names.items()}
        if all(p.grad is None for p in live.values()):
            raise RuntimeError("no parameter has a gradient: call backward() on the recorded loss before step()")
        step.checkpoint = self._storage.starts_stretch(self._window)
        step.parameters = _copy(live, self._storage.make_room(self._window, self._steps))
        step.skipped = frozenset(name for name, p in live.items() if p.grad is None)
        gradient = {name: _dense(p.grad, name) for name, p in live.items() if p.grad is not None}
        findings.gradient = {name: (one, one._version) for name, one in gradient.items()}
        if self._differences is not None:
            self._used = {name: one.detach().clone() for name, one in gradient.items()}  # a step may write to them
        if self._steps > 1 or step.accumulated or step.clips or step.scale != 1.0:
            findings.projected = projection(gradient)
            fused = getattr(optimizer, "grad_scale", None)
            findings.projected = findings.projected if fused is None else findings.projected / float(fused)
        for group in optimizer.param_groups:
            settings = {key: _plain(value) for key, value in group.items() if key != "params"}
            if isinstance(optimizer, torch.optim.AdamW):  # whose groups do not say so before torch 2.7
                settings["decoupled_weight_decay"] = True
            for p in group["params"]:
                name = self._names[p]
                step.groups[name] = settings
                state = optimizer.state.get(p, {})
                if not step.checkpoint:
                    step.state[name] = self._pullback.keep(state)
                if self._full_state or step.checkpoint:
                    step.full_state[name] = {key: _clone(value) for key, value in state.items()}
        for earlier in self._window:
            if earlier.parameters.keys() < step.parameters.keys() and earlier.kept == "whole":
                _fill_in(earlier, step)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._depth = max(0, self._depth - 1)
        if self._depth:
            return
        step = self._pending
        self._forget()
        if step is None:
            return
        if not step.parameters:
            raise RuntimeError(
                "the recorded loss was computed inside of optimizer.step(closure); compute it and call backward() "
                "before step()"
            )
        if self._differences is not None:
            self._check_repeats(self._differences, step)
        self._storage.append(self._window, step, self._steps)
        self._after = guards((name, p) for p, name in self._names.items())
        self._mark = fingerprint(self._names)

    def _check_repeats(self, differences: ElementwisePullback, step: Step) -> None:
        """Note a fault where the optimizer's step, taken again of what is recorded, leads elsewhere."""
        live = {name: p for p, name in self._names.items()}
        used, self._used = self._used, {}
        for name, gradient in used.items():
            one = ParameterUpdate(step.groups[name], step.state[name], step.parameters[name], gradient, gradient, {})
            if not differences.reproduces(one, live[name].detach()):
                step.findings.fault = (
                    f"a step of {type(self._optimizer).__name__} cannot be repeated from the settings of its groups "
                    f"and the state of parameter {name!r} alone: it reads something else, which is not "
                    "differentiated; keep that in optimizer.state or in the groups, or train the steps of the window "
                    "by an optimizer of torch"
                )
                return

    def _gathered(self) -> Step:
        """Return the step with its micro-batches, those whose gradients the optimizer has; they become one pending "
        "pass."""
        self._in_backward = False
        self._settle_scales()
        passes = [one for one in self._passes if one.arrival.factors] or self._passes[-1:]
        *earlier, newest = passes
        step = newest.step
        step.accumulated = tuple(
            [
                MicroBatch(one.batch, one.weight, one.conditions, one.findings, one.scale)
                for one in (before.step for before in earlier)
            ]
        )
        step.clips, step.findings.fault = tuple(self._clips), self._fault
        self._passes = [newest]
        return step

    def _check_between_steps(self) -> None:
        """Raise if parameters were changed between two recorded steps: the pull-back would skip that change."""
        if not self._window:
            return
        broken = [guard.what for guard in self._after if guard.broken]
        if not broken:  # `p.data` edits are seen by value only
            now = fingerprint(guard.tensor for guard in self._after)
            broken = [
                guard.what for guard, moved in zip(self._after, now != self._mark[: len(now)], strict=True) if moved
            ]
        if broken:
            raise RuntimeError(
                f"parameter {broken[0]!r} was changed between two recorded steps (a clamp, a loaded state): "
                "that is not part of the record; record the steps after the change only"
            )


class _Arrival:
    """What came back to a recorded loss: by how much it was multiplied on the way to what `backward` was called on.

    Attributes:
        scale: what the recorder itself multiplied it by.
        factors: the gradients that arrived, one a backward pass.
        settled: the step knows of them.
        hook: what notes them, as long as the graph is there.
    """

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.factors: list[Tensor | float] = []
        self.settled = False
        self.hook: weakref.ref[_Hook] | None = None

    @property
    def of_use(self) -> bool:
        """Whether the loss has a part in the next step, or may have yet."""
        return bool(self.factors) or (self.hook is not None and self.hook() is not None)


class _Hook:
    """On a recorded loss; it lives as long as the graph does."""

    def __init__(self, recorder: Recorder, arrival: _Arrival) -> None:
        self._recorder, self._arrival = weakref.ref(recorder), arrival
        arrival.hook = weakref.ref(self)

    def __call__(self, gradient: Tensor) -> None:
        """Note what arrives."""
        recorder = self._recorder()
        # (Of several gradients at once, `is_grads_batched`, no step is made.)
        if recorder is not None and not _is_batched(gradient):
            recorder._backward_begins(self._arrival, gradient)


def _is_batched(gradient: Tensor) -> bool:
    functorch = torch._C._functorch
    return functorch.is_batchedtensor(gradient) or functorch.is_legacy_batchedtensor(gradient)


@dataclass
class _Pass:
    """A forward pass whose step has not come yet."""

    step: Step
    arrival: _Arrival


_UNKNOWN_SCALE = (
    "the recorded loss was multiplied by {factor:.6g} on its way to backward(), and nothing says whether that is a "
    "constant: give it to the recorder, recorder.loss(batch, weight, scale={factor:.6g}), or put what computes it "
    "into the objective; division of every micro-batch's loss by one whole number is known to be one"
)
_CLIPPED_BETWEEN = (
    "the gradient was clipped between the micro-batches of a recorded step: clip after the last backward(), or leave "
    "such steps out of the record"
)


def _one_over_whole(factor: float, tolerance: float) -> float | None:
    """Return 1 / m for the whole number m >= 1 that `factor` is one over, up to rounding; else None.

    A function of the loss that is not linear has a slope that is no such number but by accident.
    """
    if not 1e-3 <= factor <= 1 + tolerance:
        return None
    whole = round(1 / factor)
    return 1.0 / whole if abs(factor * whole - 1.0) <= tolerance else None


def _cleared(parameters: Iterable[Tensor]) -> bool:
    """Whether no parameter has a gradient, or only zeros."""
    return all(p.grad is None or not bool(p.grad.any()) for p in parameters)


def _norm_of(parameters: Iterable[Tensor]) -> Tensor:
    """Return the norm of the gradients of all `parameters`, in float64 so that a scaled one does not overflow."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack([one.double() for one in torch._foreach_norm(gradients)]))


_COUPLED = (
    "the forward pass wrote to a buffer or normalised by its batch (BatchNorm or SyncBatchNorm in training mode): on "
    "several ranks each has a share of the batch only, and the derivative of the whole is not known; put such layers "
    "in eval mode, use GroupNorm or LayerNorm, or record in one process"
)


def _divisor_of_all(objective: Objective, weight: Tensor) -> Divisor | None:
    """Return what the inner loss divides its sum by, of all ranks' weights; None in one process."""
    several = isinstance(objective, WeightedLoss) and objective.ranks.size > 1
    return objective.divisor(weight) if isinstance(objective, WeightedLoss) and several else None


def _check_ranks(model: nn.Module, objective: Objective) -> None:
    """Raise where the gradients would not be those of the inner loss over the batch of all ranks."""
    averaged = 1
    for wrapper in _wrappers(model):
        if isinstance(wrapper, nn.parallel.DistributedDataParallel):
            averaged = torch.distributed.get_world_size(wrapper.process_group)
    ranks = objective.ranks.size if isinstance(objective, WeightedLoss) else 1
    if ranks == averaged:
        return
    if ranks == 1:
        raise ValueError(
            f"under DistributedDataParallel on {averaged} ranks the inner loss must be that of the whole batch, of "
            "which each rank has a share: give a WeightedLoss(..., ranks=Processes()) (steelyard.distributed)"
        )
    raise ValueError(
        f"objective.ranks are {ranks} processes, but the gradients of the model are averaged over {averaged}: wrap it "
        "in DistributedDataParallel over the same group, or leave out ranks"
    )


def _changed(module: nn.Module, buffers: Tensors) -> bool:
    """Whether a forward pass changed a buffer, by value, or made one."""
    return any(
        name not in buffers or not (value is buffers[name] or torch.equal(value, buffers[name]))
        for name, value in module.named_buffers()
    )


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside `torch.compile` and DDP wrappers."""
    return list(_wrappers(model))[-1]


def _wrappers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield `model`, what it wraps, and so on to the module itself."""
    inner: nn.Module | None = model
    while inner is not None:
        model = inner
        yield model
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module


def _names(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[Tensor, str]:
    names = {p: name for name, p in module.named_parameters()}
    for number, group in enumerate(optimizer.param_groups):
        for position, p in enumerate(group["params"]):
            if p not in names:
                raise ValueError(
                    f"tensor {position} of optimizer group {number}, shape {tuple(p.shape)}, is not a parameter of the "
                    "model: give Recorder the module that holds all that the optimizer trains"
                )
            if p.is_complex():
                raise TypeError(
                    f"parameter {names[p]!r} is complex ({p.dtype}), of which the updates have other derivatives: hold "
                    "it as a real parameter with a last axis of 2, and use torch.view_as_complex in forward"
                )
    optimized = [p for group in optimizer.param_groups for p in group["params"]]
    return {p: names[p] for p in optimized}


def _fill_in(earlier: Step, step: Step) -> None:
    """Give a step the parameters that a later one is the first to train (`add_param_group`), which it left alone.

    Where one was written to in between, its guard stays, and is broken.
    """
    everything = [earlier.findings, *(one.findings for one in earlier.accumulated)]
    for name in step.parameters.keys() - earlier.parameters.keys():
        what = f"parameter {name!r}"
        if any(guard.broken for findings in everything for guard in findings.guards if guard.what == what):
            continue
        for findings in everything:
            findings.guards = [guard for guard in findings.guards if guard.what != what]
        earlier.parameters[name] = step.parameters[name].clone()
        earlier.skipped |= {name}
        earlier.state[name], earlier.groups[name] = {}, step.groups[name]
        if earlier.full_state:
            earlier.full_state[name] = {}


def _copy(live: dict[str, Tensor], spare: Tensors) -> Tensors:
    """Copy into the storage of a step that just left the window, where there is one."""
    with torch.no_grad():
        if spare.keys() == live.keys():  # add_param_group makes them more
            torch._foreach_copy_(list(spare.values()), [live[name] for name in spare])
            return spare
        return {name: p.detach().clone() for name, p in live.items()}


def _dense(gradient: Tensor, name: str) -> Tensor:
    if gradient.layout != torch.strided:
        raise TypeError(f"the gradient of {name!r} is sparse, which is not supported; use sparse=False")
    return gradient


def _clone(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


def _autocast(module: nn.Module) -> tuple[str, torch.dtype] | None:
    device = next(module.parameters()).device.type
    return (device, torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None


def _same_state(one: tuple[Tensor, Tensor | None], other: tuple[Tensor, Tensor | None]) -> bool:
    same_cuda = one[1] is None or other[1] is None or torch.equal(one[1], other[1])
    return torch.equal(one[0], other[0]) and same_cuda


def _versions(modules: list[nn.Module]) -> list[int]:
    return [buffer._version for module in modules for buffer in module._buffers.values() if buffer is not None]


def _counts_no_batches(modules: list[nn.Module]) -> bool:
    """BatchNorm that normalises by the batch and counts none: it may leave its buffers as they were."""
    return any(
        isinstance(m, nn.modules.batchnorm._BatchNorm)
        and (m.running_mean is None or (m.training and m.num_batches_tracked is None))
        for m in modules
    )
