"""Record the last T steps of an ordinary training run."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from functools import partial
from types import TracebackType

import torch
from torch import Tensor, nn

from steelyard._support import _check
from steelyard._support._agreement import optimizer_settings, sample_kinds
from steelyard._support._check import Numbers
from steelyard._support._modules import named_modules_of, parameters_of
from steelyard._support._nested import named_tensors
from steelyard.bilevel.accumulation import Accumulation
from steelyard.bilevel.after_step import AfterStep
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.clipping import NormClip, ValueClip
from steelyard.bilevel.gradient_graph import graphed
from steelyard.bilevel.integrity import changed, guards, projection
from steelyard.bilevel.kept_update import copy_into, dense, fill_in, keep_update
from steelyard.bilevel.objective import Divisor, Objective, WeightedLoss, summed_by_weight
from steelyard.bilevel.optimizers import ElementwisePullback, ParameterUpdate, pullback_for
from steelyard.bilevel.step import Conditions, Findings, Step, Tensors, random_state
from steelyard.bilevel.step_hooks import StepHooks
from steelyard.bilevel.storage import WHOLE, Storage
from steelyard.bilevel.sweep.layer_record import LayerRecord, kept_forward, layers_of
from steelyard.bilevel.trained_module import (
    autocast_of,
    buffer_versions,
    buffers_changed,
    check_ranks,
    counts_no_batches,
    optimized_names,
    same_random_state,
    unwrap,
)
from steelyard.bilevel.trajectory import Trajectory, swapped

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
    `clip_grad_norm_` or `clip_grad_value_` of the recorder instead of those in `torch.nn.utils`.

    What is recorded is the loss, clips by the recorder and the optimizer's step. A gradient that something else
    changed in between (a clip that the recorder did not see, an added loss) is noticed when an estimator is asked, at
    every step of the window; with ``steps=1`` as long as that gradient is there (not after
    ``zero_grad(set_to_none=False)``). A number that the loop multiplies the loss by is a constant: that it was
    computed of the weights is not seen, and where weights decide it, it belongs into the objective. Not seen at all:
    randomness of Python or of a generator of the module's own, and running statistics other than BatchNorm's and
    InstanceNorm's.

    Memory: per step one copy of the parameters and of the optimizer state that the pull-back reads (none for SGD;
    two moments for Adam), and one of the parameters after the newest; batches and weights by reference; the gradients
    of the newest step by reference. `Storage` says how to do with less.

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
            then takes two forward passes instead of three, or one where samples do not couple. Memory: one
            batch's activations, until the trajectory is dropped.
        graphs: also keep, of every step of the window, the graph of its gradient, as unrolling does, so that
            ``Truncated(steps=T)`` takes 2 T passes less over the window (9 a step become 6). Memory: activations and
            gradients of all T batches, until the trajectory is dropped; the gradient is then computed when
            ``backward()`` comes to the loss. Under BatchNorm second derivatives come from reverse over reverse, which
            rounds more in float32, as in unrolling. Where a step has no such graph (accumulated gradients, autocast,
            hooks on parameters, a model behind DDP or `torch.compile`, reentrant checkpoints, an objective that is no
            `WeightedLoss`), it is replayed as without; ``Truncated.passed_over`` says so.
        storage: how the steps before the newest are kept; default whole, beside the parameters.

    Raises:
        TypeError: an optimizer whose update is not elementwise, with what gave it away; a complex parameter.
        ValueError: `graphs` with `reuse`, or with a storage that is not whole; a rounded storage with an adaptive
            optimizer, a hyperparameter that the pull-back cannot be finite for (``eps=0``), an optimized tensor that
            is not a parameter of `model`, or ranks of `objective` that are not those of `model`.

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
        graphs: bool = False,
    ) -> None:
        self._pullback = pullback_for(optimizer)
        self._differences = self._pullback if isinstance(self._pullback, ElementwisePullback) else None
        self._used: Tensors = {}
        check_ranks(model, objective)
        self._model = model
        self._module = unwrap(model)
        self._optimizer = optimizer
        self._objective = objective
        self._full_state, self._reuse, self._graphs = full_state, reuse, _check.boolean("graphs", graphs)
        if graphs and (reuse or storage != WHOLE):
            raise ValueError(
                "graphs=True keeps whole steps, and more of a forward pass than reuse=True: leave out "
                + ("reuse" if reuse else "storage")
            )
        self._names = optimized_names(self._module, optimizer)
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
        self._accumulation = Accumulation(optimizer)
        self._agreed = False
        self._after = AfterStep()
        self._spare: Tensors = {}
        self._written: list[int] = []
        self._hooks = StepHooks(optimizer, self._before_step, self._after_step)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the hooks and drop the record. The model and the optimizer stay as they are."""
        self._hooks.remove()
        self._window.clear()
        self._accumulation.forget()
        self._after.take_copies()
        self._spare = {}

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
        self._accumulation.drop_useless()
        # Before this forward pass takes memory of its own:
        for earlier in [*self._window, *self._accumulation.steps]:
            earlier.findings.gradient = earlier.findings.forward_record = earlier.findings.losses = None
        if any(p not in self._names for p in parameters_of(self._optimizer)):
            self._names = optimized_names(self._module, self._optimizer)  # add_param_group
        modules = self._modules()
        buffered = any(module._buffers for module in modules)
        buffers = dict(self._module.named_buffers()) if buffered else {}
        held = self._untrained(modules)
        held += [(f"buffer {name!r}", one) for name, one in buffers.items() if one.requires_grad]
        read = [*named_tensors("inputs", batch.inputs), ("targets", batch.targets)]
        findings = Findings(
            connected=weight.grad_fn is not None,
            guards=guards([*read, ("weight", weight), *held]),
        )
        conditions = Conditions(
            buffers={name: one if one.requires_grad else one.detach().clone() for name, one in buffers.items()},
            modes=tuple([module.training for module in modules]),
            rng=random_state(self._module),
            autocast=autocast_of(self._module),
            divisor=_divisor_of_all(self._objective, weight),
        )
        versions = buffer_versions(modules)
        self._note_moved(versions)
        pending = self._accumulation.newest
        if pending is not None:
            pending.findings.rewritten |= self._written != versions
        value = self._evaluate(batch, weight, conditions, findings)
        # Detected by effect, not by class only, so that functional dropout and home-made norms are seen too.
        findings.stochastic = not same_random_state(conditions.rng, random_state(self._module))
        # Versions cost nothing but are not enough: DDP writes to all buffers what they were, `F.batch_norm` to some
        # without counting it.
        wrote = conditions.divisor is None and versions != buffer_versions(modules)
        findings.coupled = wrote or counts_no_batches(modules)
        if not findings.coupled and buffered:
            findings.coupled = buffers_changed(self._module, conditions.buffers)
        if conditions.divisor is not None and findings.coupled:
            raise RuntimeError(_COUPLED)
        if findings.forward_record is not None:
            findings.forward_record.listening = not findings.coupled
        self._written = buffer_versions(modules)
        value = value if scale == 1.0 else value * scale
        self._accumulation.add(Step(batch, weight.detach(), conditions, findings, scale=scale), value)
        self._hooks.listen()
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
            max_norm, norm_type, error_if_nonfinite, foreach: as torch has them; `norm_type` at least 1. With an
                infinite `max_norm` nothing is clipped.

        Returns:
            The norm before.

        Raises:
            ValueError: `max_norm` < 0, `norm_type` < 1, a parameter given twice, or one with a gradient that the
                optimizer does not train, whose gradient would move the norm.
            RuntimeError: as torch raises where `error_if_nonfinite`.
        """
        if max_norm != math.inf:  # which asks for the norm alone
            max_norm = _check.in_range("max_norm", max_norm, low=0.0)
        norm_type = float(norm_type)
        if not norm_type >= 1:
            raise ValueError(f"norm_type must be at least 1 (or inf), got {norm_type}: no other is a norm")
        taken = self._clipped(parameters)
        norm = nn.utils.clip_grad_norm_(taken, max_norm, norm_type, error_if_nonfinite, foreach)
        names = tuple([self._names[p] for p in taken if p in self._names])
        clip = NormClip(names, max_norm, norm_type, foreach, float(norm))
        if self._accumulation and clip.factor < 1:
            self._accumulation.clips.append(clip)
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
        if self._accumulation and names:
            self._accumulation.clips.append(ValueClip(names, clip_value, foreach))

    def _clipped(self, parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
        """Return those of `parameters` that have a gradient; what was done to it since backward is noted first."""
        given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        taken = [p for p in given if p.grad is not None]
        if not self._accumulation:
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
        self._accumulation.settle_scales()
        if self._graphs:
            for p in taken:  # a clip writes to gradients, and the graph has these
                p.grad = None if p.grad is None else p.grad.clone()
        return taken

    def _modules(self) -> list[nn.Module]:
        return [one for _, one in named_modules_of(self._module)]

    def _untrained(self, modules: list[nn.Module]) -> list[tuple[str, Tensor]]:
        """Return the parameters of `modules` that the optimizer does not train, with what to call them."""
        if all(p is None or p in self._names for one in modules for p in one._parameters.values()):
            return []
        trained = set(self._names.values())
        return [(f"parameter {n!r}", p) for n, p in self._module.named_parameters() if n not in trained]

    def _agree(self, batch: Batch, weight: Tensor) -> None:
        """Raise RankError if the ranks would not take the same steps of the same loss."""
        objective, self._agreed = self._objective, True
        if isinstance(objective, WeightedLoss) and objective.ranks.size > 1:
            facts = {"steps": self._steps, "storage": self._storage, "normalise": objective.normalise}
            facts |= {"regulariser given": objective.regulariser is not None, "weight": weight.dtype}
            facts |= {**optimizer_settings("optimizer", self._optimizer), **sample_kinds("batch", batch)}
            objective.ranks.agree("the record", facts)

    def _evaluate(self, batch: Batch, weight: Tensor, conditions: Conditions, findings: Findings) -> Tensor:
        """Return the inner loss; what was asked for of its forward pass, and can be kept, goes into `findings`."""
        weighted = summed_by_weight(self._objective)
        if weighted is None:
            return self._objective(self._model, batch, weight)
        losses_of = partial(weighted.sample_losses, self._model, batch)
        reduce = partial(weighted.reduce, self._model, weight=weight, divisor=conditions.divisor)
        if self._model is not self._module:
            return reduce(losses_of())
        live = {name: p for p, name in self._names.items()}
        if self._graphs and conditions.autocast is None and not any(p._backward_hooks for p in live.values()):
            copied = self._copied(live)
            copied = {} if changed(copied, live) else copied
            value, findings.graph = graphed(self._module, live, len(batch), losses_of, reduce, swapped, copied)
            return value
        if not self._reuse:
            return reduce(losses_of())
        plain = conditions.autocast is None and bool(weight.all())
        losses, findings.forward_record = kept_forward(self._objective, self._module, live, plain, losses_of)
        findings.losses = losses
        return reduce(losses)

    def trajectory(self) -> Trajectory:
        """Return the record and start a new, empty one.

        Raises:
            RuntimeError: no step was recorded, or a loss was recorded without its optimizer step.
        """
        if self._accumulation:
            raise RuntimeError(
                "a loss was recorded but optimizer.step() has not followed: call it before trajectory(); if a "
                "GradScaler skipped that step, take one more"
            )
        if not self._window:
            raise RuntimeError(
                "no step was recorded: use recorder.loss(batch, weight) as the loss of the training loop, once for "
                "each optimizer.step() (a step without one empties the record)"
            )
        self._note_moved(buffer_versions(self._modules()))
        steps = list(self._window)
        self._window.clear()
        names = tuple(steps[-1].parameters)
        copies = self._after.take_copies()
        after = {name: copies[name] for name in names}
        earlier, steps = steps[: -self._steps], steps[-self._steps :]
        return Trajectory(
            self._module, self._objective, steps, type(self._optimizer), names, after, earlier, self._differences
        )

    @property
    def findings(self) -> Findings | None:
        """What was seen of the newest loss; with `reuse` its samples' losses on their graph, too. None: no loss yet."""
        step = self._accumulation.newest
        return None if step is None else step.findings

    def at_rest(self) -> Trajectory:
        """Return the newest loss as a step that leads nowhere, at the live parameters, and start a new, empty record.

        For derivatives of the samples' losses where the model stands, without ``backward()`` or a step. Parameters are
        held by reference: ask before they change, which is not looked at.

        Raises:
            RuntimeError: no loss was recorded.
        """
        step = self._accumulation.newest
        if step is None:
            raise RuntimeError("no loss was recorded: call recorder.loss(batch, weight) first")
        self._accumulation.forget()
        self._window.clear()
        record, losses = step.findings.forward_record, step.findings.losses
        live = {name: p for p, name in self._names.items()}
        if record is not None and losses is not None and step.conditions.autocast is None:
            # A chain's first forward pass, too, is answered as all that follow are: a resumed run begins with a first.
            chain = record if isinstance(record, LayerRecord) else layers_of(losses, live)
            if chain is not None and chain.losses is None:
                chain.listening = True
                chain.listen_to(losses, live)
                step.findings.forward_record = record = chain
        if record is not None:
            record.listening = False
        step.parameters = {name: p.detach() for p, name in self._names.items()}
        names, unknown = tuple(step.parameters), dict[str, Tensor]()
        return Trajectory(self._module, self._objective, [step], type(self._optimizer), names, unknown)

    def _note_moved(self, versions: list[int]) -> None:
        """Note where a forward pass that is not recorded has moved buffers since the newest step."""
        if self._window and not self._accumulation:
            self._window[-1].findings.moved |= self._written != versions

    def _check(self, batch: Batch, weight: Tensor) -> None:
        if self._hooks.removed:
            raise RuntimeError("this recorder is closed")
        _check.instance("batch", batch, Batch, "a Batch: Batch.of(inputs, targets) of all samples, then .take(rows)")
        if not isinstance(weight, Tensor) or weight.shape != (len(batch),) or not weight.is_floating_point():
            got = f"{weight.dtype} {tuple(weight.shape)}" if isinstance(weight, Tensor) else type(weight).__name__
            raise ValueError(
                f"weight must be a floating-point tensor of shape ({len(batch)},), one a sample of the batch, got {got}"
            )

    def _before_step(self) -> None:
        optimizer = self._optimizer
        overflow = getattr(optimizer, "found_inf", None)  # a fused optimizer under a GradScaler: it will not move
        if overflow is not None and bool(overflow):
            self._accumulation.forget()
            return
        if not self._accumulation:
            self._window.clear()
            return
        if self._window:
            self._after.check(optimizer)
        self._drop_untrained()
        step = self._accumulation.gathered()
        findings = step.findings
        versions = buffer_versions(self._modules())
        findings.rewritten, self._written = self._written != versions, versions
        live = {name: p for p, name in self._names.items()}
        if all(p.grad is None for p in live.values()):
            raise RuntimeError("no parameter has a gradient: call backward() on the recorded loss before step()")
        step.checkpoint = self._storage.starts_stretch(self._window)
        self._keep_parameters(step, live)
        step.skipped = frozenset(name for name, p in live.items() if p.grad is None)
        gradient = {name: dense(p.grad, name) for name, p in live.items() if p.grad is not None}
        findings.gradient = {name: (one, one._version) for name, one in gradient.items()}
        if self._differences is not None:
            self._used = {name: one.detach().clone() for name, one in gradient.items()}  # a step may write to them
        if findings.graph is not None and not step.clips:
            findings.graph.note_used(gradient)
        known = findings.graph is not None and findings.graph.used
        if not known and (self._steps > 1 or step.accumulated or step.clips or step.scale != 1.0):
            findings.projected = projection(gradient)
            fused = getattr(optimizer, "grad_scale", None)
            findings.projected = findings.projected if fused is None else findings.projected / float(fused)
        keep_update(step, optimizer, self._names, self._pullback.keep, self._full_state)
        for earlier in self._window:
            if earlier.parameters.keys() < step.parameters.keys() and earlier.kept == "whole":
                fill_in(earlier, step)

    def _copied(self, live: Tensors) -> Tensors:
        """Return the copies that were made after the newest step of the window; none where others are trained now."""
        return self._after.copies if self._window and self._after.copies.keys() == live.keys() else {}

    def _keep_parameters(self, step: Step, live: Tensors) -> None:
        copied = self._copied(live)
        self._spare = self._storage.make_room(self._window, self._steps)
        graph = step.findings.graph
        kept = None if graph is None or step.accumulated else graph.parameters(live, copied)
        if kept is None:
            for findings in (step.findings, *(one.findings for one in step.accumulated)):
                findings.graph = None
        if kept is not None or self._graphs:
            self._spare = {}  # a graph has them
        if kept is None and copied:  # made after the step before, and what is live still: `AfterStep.check`
            step.parameters = copied
        else:
            step.parameters = copy_into(live, self._after.copies) if kept is None else kept

    def _after_step(self) -> None:
        step = self._accumulation.newest
        self._accumulation.forget()
        if step is None:
            if self._window and self._steps > 1:  # skipped by a GradScaler: it has counted, and counted back
                self._after.note_states(self._optimizer, self._names)
            return
        if not step.parameters:
            raise RuntimeError(
                "the recorded loss was computed inside of optimizer.step(closure); compute it and call backward() "
                "before step()"
            )
        if self._differences is not None:
            self._check_repeats(self._differences, step)
        self._storage.append(self._window, step, self._steps)
        given_away = self._graphs or step.parameters is self._after.copies
        self._after.note(self._names, self._spare or ({} if given_away else self._after.copies))
        self._spare = {}
        if self._steps > 1:
            self._after.note_states(self._optimizer, self._names)

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

    def _drop_untrained(self) -> None:
        """Forget parameters that have left the optimizer's groups."""
        kept = set(parameters_of(self._optimizer))
        gone = [name for p, name in self._names.items() if p not in kept]
        if gone and self._window:
            raise RuntimeError(
                f"parameter {gone[0]!r} has left the optimizer's groups between two recorded steps, which is not part "
                "of the record: set requires_grad_(False) on it, or record the steps after the change only"
            )
        self._names = {p: name for p, name in self._names.items() if p in kept}


_COUPLED = (
    "the forward pass wrote to a buffer or normalised by its batch (BatchNorm or SyncBatchNorm in training mode): on "
    "several ranks each has a share of the batch only, and the derivative of the whole is not known; put such layers "
    "in eval mode, use GroupNorm or LayerNorm, or record in one process"
)


def _divisor_of_all(objective: Objective, weight: Tensor) -> Divisor | None:
    """Return what the inner loss divides its sum by, of all ranks' weights; None in one process."""
    several = isinstance(objective, WeightedLoss) and objective.ranks.size > 1
    return objective.divisor(weight) if isinstance(objective, WeightedLoss) and several else None
