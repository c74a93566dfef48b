"""Record the last T steps of an ordinary training run."""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from steelyard import _check
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.objective import Objective
from steelyard.bilevel.pullback import pullback_for
from steelyard.bilevel.trajectory import Step, Tensors, Trajectory, random_state

__all__ = ["Recorder"]


class Recorder:
    """Keeps what the last `steps` optimizer steps started from; training itself stays the user's loop.

    Use `recorder.loss(batch, weight)` where the loop would have called the inner loss; everything else
    (``zero_grad``, ``backward``, ``optimizer.step``, schedulers, autocast, `GradScaler`) stays as it was.
    A step whose loss did not come from the recorder empties the window, so recording only the last steps of
    a long run costs the others nothing.

    Memory: per step one copy of the parameters and of the optimizer state that the pull-back reads (none for SGD;
    two moments for Adam); batches and weights by reference; the gradients of the newest step by reference.

    Args:
        model: the module; `torch.compile` and DDP wrappers are seen through when steps are replayed.
        optimizer: a supported `torch.optim` optimizer over parameters of `model`.
        objective: the inner loss, usually a `WeightedLoss`.
        steps: T, how many steps to keep.
        full_state: also copy the optimizer state that only `Unrolled` needs.

    Raises:
        TypeError: an optimizer class without a closed-form pull-back (the message lists those that have one).
        ValueError: a hyperparameter that the pull-back cannot be finite for (``eps=0``), or an optimized
            tensor that is not a parameter of `model`.

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
    ) -> None:
        self._pullback = pullback_for(optimizer)
        self._model = model
        self._module = unwrap(model)
        self._optimizer = optimizer
        self._objective = objective
        self._full_state = full_state
        self._names = _names(self._module, optimizer)
        self._window: deque[Step] = deque(maxlen=_check.integer("steps", steps, low=1))
        self._pending: Step | None = None
        self._versions: dict[str, int] = {}
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

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

    def loss(self, batch: Batch, weight: Tensor) -> Tensor:
        """Return ``objective(model, batch, weight)`` and note what is needed to replay it.

        Args:
            batch: the samples of this step.
            weight: ``(batch,)`` their weights.

        Raises:
            ValueError: `weight` does not fit the batch.
            RuntimeError: the recorder is closed, or two losses were asked for before one optimizer step.
        """
        self._check(batch, weight)
        step = Step(
            batch=batch,
            weight=weight.detach(),
            buffers={name: value.detach().clone() for name, value in self._module.named_buffers()},
            modes=tuple(module.training for module in self._module.modules()),
            rng=random_state(self._module),
            autocast=_autocast(self._module),
        )
        versions = [buffer._version for buffer in self._module.buffers()]
        value = self._objective(self._model, batch, weight)
        # Detected by effect, not by class, so that functional dropout and home-made norms are seen too.
        step.stochastic = not _same_state(step.rng, random_state(self._module))
        step.coupled = versions != [buffer._version for buffer in self._module.buffers()] or _has_batch_norm(
            self._module
        )
        self._pending = step
        return value

    def discard(self) -> None:
        """Forget a loss that no optimizer step follows: one that a `GradScaler` skipped, or that was only read."""
        self._pending = None

    def trajectory(self) -> Trajectory:
        """Return the record and start a new, empty one.

        Raises:
            RuntimeError: no step was recorded, or a loss was recorded without its optimizer step.
        """
        if self._pending is not None:
            raise RuntimeError("a loss was recorded but optimizer.step() has not followed; call it before trajectory()")
        if not self._window:
            raise RuntimeError(
                "no step was recorded: use recorder.loss(batch, weight) as the loss of the training loop"
            )
        steps = list(self._window)
        self._window.clear()
        return Trajectory(self._module, self._objective, steps, type(self._optimizer), dict(self._versions))

    def _check(self, batch: Batch, weight: Tensor) -> None:
        if not self._handles:
            raise RuntimeError("this recorder is closed")
        if weight.shape != (len(batch),):
            raise ValueError(
                f"weight must have shape ({len(batch)},), one a sample of the batch, got {tuple(weight.shape)}"
            )
        if self._pending is not None:
            raise RuntimeError(
                "two losses were recorded before one optimizer step: gradient accumulation is not recorded; "
                "use one larger batch for the recorded steps, call model and objective directly for other losses, or "
                "discard() a loss whose step a GradScaler skipped"
            )

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._pending is None:
            self._window.clear()
            return
        step = self._pending
        live = {name: p for p, name in self._names.items()}
        spare = self._window.popleft() if len(self._window) == self._window.maxlen else None
        step.parameters = _copy(live, spare.parameters if spare else {})
        step.skipped = frozenset(name for name, p in live.items() if p.grad is None)
        step.gradient = {name: (p.grad, p.grad._version) for name, p in live.items() if p.grad is not None}
        for group in optimizer.param_groups:
            settings = {key: _plain(value) for key, value in group.items() if key != "params"}
            for p in group["params"]:
                name = self._names[p]
                step.groups[name] = settings
                state = optimizer.state.get(p, {})
                step.state[name] = self._pullback.keep(settings, state)
                if self._full_state:
                    step.full_state[name] = {key: _clone(value) for key, value in state.items()}

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._pending is None:
            return
        if self._window:
            self._window[-1].gradient = None
        self._window.append(self._pending)
        self._pending = None
        self._versions = {name: p._version for p, name in self._names.items()}


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside `torch.compile` and DDP wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def _names(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[Tensor, str]:
    names = {p: name for name, p in module.named_parameters()}
    for number, group in enumerate(optimizer.param_groups):
        for position, p in enumerate(group["params"]):
            if p not in names:
                raise ValueError(
                    f"tensor {position} of optimizer group {number}, shape {tuple(p.shape)}, is not a parameter of the "
                    "model: give Recorder the module that holds all that the optimizer trains"
                )
    optimized = [p for group in optimizer.param_groups for p in group["params"]]
    return {p: names[p] for p in optimized}


def _copy(live: dict[str, Tensor], spare: Tensors) -> Tensors:
    """Copy into the storage of a step that just left the window, where there is one."""
    with torch.no_grad():
        if spare:
            torch._foreach_copy_(list(spare.values()), [live[name] for name in spare])
            return spare
        return {name: p.detach().clone() for name, p in live.items()}


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


def _has_batch_norm(module: nn.Module) -> bool:
    """BatchNorm without running statistics changes no buffer, and still normalises by the batch."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is None for m in module.modules())
