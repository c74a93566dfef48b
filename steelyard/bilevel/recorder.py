"""Record the last T steps of an ordinary training run."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
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
from steelyard.bilevel.integrity import Guard, fingerprint, guards, projection
from steelyard.bilevel.objective import Divisor, Objective, WeightedLoss, summed_by_weight
from steelyard.bilevel.optimizers import pullback_for
from steelyard.bilevel.step import Conditions, Findings, Step, Tensors, random_state
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

    What is recorded is the loss and the optimizer's step. A gradient that something else changed in between (clipping,
    accumulation, an added loss) is noticed when an estimator is asked, at every step of the window; with ``steps=1`` as
    long as that gradient is there (not after ``zero_grad(set_to_none=False)``). Not seen at all: randomness of Python
    or of a generator of the module's own, and running statistics other than BatchNorm's and InstanceNorm's.

    Memory: per step one copy of the parameters and of the optimizer state that the pull-back reads (none for SGD;
    two moments for Adam); batches and weights by reference; the gradients of the newest step by reference. `Storage`
    says how to do with less.

    Args:
        model: the module; `torch.compile` and DDP wrappers are seen through when steps are replayed. Under DDP on
            several ranks each one records its share of the batch, and asks for its own samples' derivatives; all ranks
            must ask, for they exchange sums.
        optimizer: a supported `torch.optim` optimizer over parameters of `model`.
        objective: the inner loss, usually a `WeightedLoss`; under DDP one with ``ranks=Processes()``.
        steps: T, how many steps to keep.
        full_state: also copy the optimizer state that only `Unrolled` needs.
        reuse: also keep, for the newest step, the activations that its backward pass needed (and where samples do not
            couple, the output gradients of the layers), by reference. ``Truncated(steps=1)`` on that step's own samples
            then takes two forward passes in the place of three, or one where samples do not couple. Memory: one
            batch's activations, until the trajectory is dropped.
        storage: how the steps before the newest are kept; default whole, beside the parameters.

    Raises:
        TypeError: an optimizer class without a closed-form pull-back (the message lists those that have one); a complex
            parameter.
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
        self._window: deque[Step] = deque()
        self._pending: Step | None = None
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
        self._pending = None

    def loss(self, batch: Batch, weight: Tensor | Numbers) -> Tensor:
        """Return ``objective(model, batch, weight)`` and note what is needed to replay it.

        Args:
            batch: the samples of this step.
            weight: ``(batch,)`` their weights.

        Raises:
            ValueError: `weight` does not fit the batch.
            RuntimeError: the recorder is closed; on several ranks, the forward pass mixed samples (BatchNorm in
                training mode).
            RankError: at the first loss, the ranks differ in settings of the optimizer, the objective or the recorder,
                or in the types of their samples.

        A loss that no step follows (one that was only read, or whose step a `GradScaler` skipped) is replaced by the
        next.
        """
        weight = weight if isinstance(weight, Tensor) else _check.floats("weight", weight)
        self._check(batch, weight)
        if not self._agreed:
            self._agree(batch, weight)
        for earlier in self._window:  # before this forward pass takes memory of its own
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
        self._pending, self._written = Step(batch, weight.detach(), conditions, findings), _versions(modules)
        self._listen()
        return value

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
        return Trajectory(self._module, self._objective, steps, type(self._optimizer), names, mark, earlier)

    def _check(self, batch: Batch, weight: Tensor) -> None:
        if not self._handles:
            raise RuntimeError("this recorder is closed")
        if not isinstance(weight, Tensor) or weight.shape != (len(batch),) or not weight.is_floating_point():
            got = f"{weight.dtype} {tuple(weight.shape)}" if isinstance(weight, Tensor) else type(weight).__name__
            raise ValueError(
                f"weight must be a floating-point tensor of shape ({len(batch)},), one a sample of the batch, got {got}"
            )

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        overflow = getattr(optimizer, "found_inf", None)  # a fused optimizer under a GradScaler: it will not move
        if overflow is not None and bool(overflow):
            self._pending = None
            return
        if self._pending is None:
            self._window.clear()
            return
        self._check_between_steps()
        step = self._pending
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
        if self._steps > 1:
            findings.projected = projection(gradient)
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

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        step, self._pending = self._pending, None
        if step is None:
            return
        if not step.parameters:
            raise RuntimeError(
                "the recorded loss was computed inside of optimizer.step(closure); compute it and call backward() "
                "before step()"
            )
        self._storage.append(self._window, step, self._steps)
        self._after = guards((name, p) for p, name in self._names.items())
        self._mark = fingerprint(self._names)

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
