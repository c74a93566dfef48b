"""The recorded end of an inner run, and each step of it as a pure function of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from steelyard._support._modules import first_parameter, named_modules_of, named_parameters_of
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.integrity import changed
from steelyard.bilevel.objective import Objective, WeightedLoss, summed_by_weight
from steelyard.bilevel.optimizers import SUPPORTED, ElementwisePullback, Pullback
from steelyard.bilevel.step import Conditions, Step, Tensors, micro_batches, random_state, set_random_state
from steelyard.bilevel.sweep.composites import Composites, WithoutPadding
from steelyard.distributed import ALONE, Ranks

__all__ = ["Trajectory", "swapped"]


@contextmanager
def swapped(
    module: nn.Module, tensors: Mapping[str, Tensor], walked: list[tuple[str, nn.Module]] | None = None
) -> Iterator[None]:
    """Put `tensors`, by name, in the places of the parameters and buffers of `module`, and afterwards these back.

    Every place of a tensor, under whatever name. (`torch.func.functional_call` in torch 2.13 does not give a module
    that stands in two places its parameters back: `tests/bilevel/test_torch_facts.py`.) `walked` is `named_modules_of`
    the module, where the caller has it.
    """
    places = _places(named_modules_of(module) if walked is None else walked, tensors)
    try:
        for place in places:
            place.put()
        yield
    finally:
        for place in places:
            place.put_back()


class _Place(NamedTuple):
    """A parameter or a buffer of a module, and what stands in for it."""

    store: dict[str, Any]
    name: str
    own: Tensor
    other: Tensor

    def put(self) -> None:
        self.store[self.name] = self.other

    def put_back(self) -> None:
        self.store[self.name] = self.own


def _places(walked: list[tuple[str, nn.Module]], tensors: Mapping[str, Tensor]) -> list[_Place]:
    """Return every place, in the modules `walked`, of a tensor that one of `tensors` stands in for."""
    instead: dict[int, Tensor] = {}
    found: list[tuple[dict[str, Any], str, Tensor]] = []
    for prefix, one in walked:
        start = f"{prefix}." if prefix else ""
        stores: tuple[dict[str, Any], ...] = (one._parameters, one._buffers)
        for store in stores:
            for name, value in store.items():
                if value is not None:
                    found.append((store, name, value))
                    other = tensors.get(start + name)
                    if other is not None:
                        instead[id(value)] = other
    return [_Place(*one, instead[id(one[2])]) for one in found if id(one[2]) in instead]


@dataclass
class Trajectory:
    """The last T steps of a run, oldest first; the live module holds the parameters after the last one.

    Attributes:
        module: the user's module (unwrapped from `torch.compile` and DDP).
        objective: the inner loss.
        steps: the recorded steps.
        optimizer: the class of the user's optimizer.
        names: of the optimised parameters.
        after: copies of their values after the last step.
        earlier: steps before those, which some of them are replayed from (`Storage.checkpoint_every`).
        differences: the adjoint of the optimizer's update where its class has none in closed form.
    """

    module: nn.Module
    objective: Objective
    steps: list[Step]
    optimizer: type[torch.optim.Optimizer]
    names: tuple[str, ...]
    after: Tensors
    earlier: list[Step] = field(default_factory=list)
    differences: ElementwisePullback | None = None

    def __repr__(self) -> str:
        """Say what it is of, without its tensors."""
        samples = len(torch.unique(torch.cat([step.batch.index for step in self.steps]))) if self.steps else 0
        return (
            f"Trajectory({len(self.steps)} steps of {self.optimizer.__name__}, {samples} samples, "
            f"{len(self.names)} parameter tensors of {type(self.module).__name__})"
        )

    @property
    def pullback(self) -> Pullback:
        """The adjoint of the optimizer's update."""
        return self.differences or SUPPORTED[self.optimizer]

    @property
    def ranks(self) -> Ranks:
        """The processes that trained together; batches and weights of the record are this one's shares."""
        return self.objective.ranks if isinstance(self.objective, WeightedLoss) else ALONE

    @property
    def index(self) -> Tensor:
        """The ids ``(k,)`` of the samples of the window (of this rank), sorted, each once."""
        first, *more = [one.batch.index for one in micro_batches(self.steps)]
        if not more and bool((first[1:] > first[:-1]).all()):
            return first
        return torch.unique(torch.cat([first, *more]))

    def final(self) -> Tensors:
        """Return the optimised parameters after the last step (live, no copies); `check` says if they still are."""
        live = named_parameters_of(self.module)
        return {name: live[name] for name in self.names}

    def check(self) -> Tensors:
        """Return `final`; RuntimeError if anything that the record refers to was changed since.

        Every estimator calls it.
        """
        final = self.final()
        if moved := changed(self.after, final):
            raise RuntimeError(
                f"parameter {moved[0]!r} was changed after the last recorded step ({len(moved)} in all): ask for "
                "the hypergradient before training on, or record again"
            )
        for step in self.steps:
            if step.findings.fault:
                raise RuntimeError(step.findings.fault)
        for step in micro_batches([*self.earlier, *self.steps]):
            broken = [guard.what for guard in step.findings.guards if guard.broken]
            if broken and broken[0].startswith("parameter"):
                raise RuntimeError(
                    f"{broken[0]}, which the optimizer did not train in a recorded step, was changed after it (by "
                    "another optimizer, an average of the others, or trained since add_param_group): ask before that "
                    "change, which with steps=1 can be done, or record the steps after it only"
                )
            if broken:
                raise RuntimeError(
                    f"{broken[0]} of a recorded step was written to after the step; the record holds a reference: ask "
                    "for the hypergradient first, or give the recorder a tensor of its own (clone it)"
                )
        return final

    def inner_loss(self, step: Step, module: nn.Module, weight: Tensor | None = None) -> Tensor:
        """Return the inner loss of `step`, for use inside of `replay`; under another `weight` where one is given.

        On several ranks that of this rank's share, averaged over ranks later.
        """
        weight = step.weight if weight is None else weight
        if step.conditions.divisor is None:
            return self.objective(module, step.batch, weight)
        return self.reduce(step, module, self.weighted.sample_losses(module, step.batch), weight)

    def reduce(self, step: Step, module: nn.Module, losses: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the inner loss of `step` from the losses ``(batch,)`` of its samples."""
        return self.weighted.reduce(module, losses, step.weight if weight is None else weight, step.conditions.divisor)

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
        walked = named_modules_of(self.module)
        if exactly and not composites and self._stands_as_in(step, walked):
            places = _places(walked, parameters)
            try:
                for place in places:
                    place.put()
                return function(self.module, *args)
            finally:
                for place in places:
                    place.put_back()
        tensors = self._tensors(parameters, step.conditions.buffers)
        taken_apart = Composites() if composites else nullcontext()
        with self._restored(step.conditions, walked, not exactly), taken_apart, swapped(self.module, tensors, walked):
            return function(self.module, *args)

    def _stands_as_in(self, step: Step, walked: list[tuple[str, nn.Module]]) -> bool:
        """Whether what asks the kept graph of `step` needs nothing but its parameters in place.

        That is, no buffers, random numbers, autocast or other modes. (To restore these takes a small net up to a tenth
        of the time of the derivative itself.)
        """
        conditions, graph = step.conditions, step.findings.graph
        if graph is None or graph.custom or step.findings.stochastic:
            return False
        if conditions.buffers or conditions.autocast is not None:
            return False
        if any(one._buffers or one.training != mode for (_, one), mode in zip(walked, conditions.modes, strict=True)):
            return False
        first = first_parameter(self.module)
        return first is not None and not torch.is_autocast_enabled(first.device.type)

    def sample_losses(self, step: Step, parameters: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Replay the per-sample losses ``(batch,)`` of `batch` at `parameters` as in `step`."""
        return self.replay(step, parameters, self.weighted.sample_losses, batch)

    @property
    def is_weighted(self) -> bool:
        """Whether the objective is a `WeightedLoss` that is summed up as those are."""
        return summed_by_weight(self.objective) is not None

    @property
    def weighted(self) -> WeightedLoss:
        """The objective, where it is a `WeightedLoss`; TypeError with the remedy otherwise."""
        weighted = summed_by_weight(self.objective)
        if weighted is not None:
            return weighted
        raise TypeError(
            "gradients for sample weights need a WeightedLoss objective (a subclass may change sample_losses, not "
            f"__call__), got {type(self.objective).__name__}; "
            "for another inner loss use `estimator.tensors(trajectory, outer, [tensor, ...])`"
        )

    def evaluate(self, outer, parameters: Mapping[str, Tensor]) -> Tensor:  # type: ignore[no-untyped-def]
        """Evaluate `outer(module)` at `parameters`; buffers, modes and random state are left as they were."""
        walked = named_modules_of(self.module)
        buffers = dict(self.module.named_buffers()) if any(one._buffers for _, one in walked) else {}
        tensors = self._tensors(parameters, buffers)
        with self._restored(None, walked), WithoutPadding(), swapped(self.module, tensors, walked):
            return scalar(outer(self.module))

    def _tensors(self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> Tensors:
        # Buffers are cloned because BatchNorm writes its running statistics into whatever it is given.
        # One that requires a gradient is somebody's hyperparameter, and stays connected.
        copies = {name: value if value.requires_grad else value.detach().clone() for name, value in buffers.items()}
        return {**parameters, **copies}

    @contextmanager
    def _restored(
        self, conditions: Conditions | None, walked: list[tuple[str, nn.Module]], transformed: bool = True
    ) -> Iterator[None]:
        """Restore conditions (None: keep the present ones), and afterwards those of the caller."""
        modules = [one for _, one in walked]
        modes = [module.training for module in modules]
        rng = random_state(self.module)
        try:
            if conditions is None:
                yield
                return
            _set_modes(modules, conditions.modes)
            set_random_state(self.module, conditions.rng)
            # Of the attention kernels only the plain one can be differentiated forward.
            with (
                self._autocast(conditions, transformed),
                sdpa_kernel(SDPBackend.MATH) if transformed else nullcontext(),
            ):
                yield
        finally:
            set_random_state(self.module, rng)
            _set_modes(modules, modes)

    def _autocast(self, conditions: Conditions, transformed: bool) -> AbstractContextManager[Any]:
        """Return the autocast of a step, on or off.

        (Its cache would hand a cast made outside of a transformation to the inside.)
        """
        first = first_parameter(self.module)
        device = "cpu" if first is None else first.device.type
        enabled = conditions.autocast is not None
        if not enabled and not torch.is_autocast_enabled(device):
            return nullcontext()
        dtype = conditions.autocast[1] if conditions.autocast else torch.bfloat16
        return torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=not transformed)


def _set_modes(modules: Sequence[nn.Module], modes: Sequence[bool]) -> None:
    for module, training in zip(modules, modes, strict=True):
        if module.training != training:
            module.training = training


def scalar(value: Any) -> Tensor:
    """Return what an outer loss returned as a tensor without dimensions; ValueError if it is no real scalar."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"outer must return a scalar tensor, got {got}")
    if value.is_complex():
        raise ValueError(f"outer must return a real number, got {value.dtype}: return its abs(), or its .real")
    return value.reshape(())
