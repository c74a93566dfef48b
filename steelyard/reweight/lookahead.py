"""The optimizer's next step: what each sample's weight in it does to an outer loss. It is taken back, or not taken."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from steelyard.bilevel import Batch, Outer, Recorder, Truncated, WeightedLoss
from steelyard.bilevel.agreement import objection_to
from steelyard.bilevel.kept_update import dense
from steelyard.bilevel.objective import summed_by_weight
from steelyard.bilevel.optimizers import SGDPullback
from steelyard.bilevel.replay import backward_into
from steelyard.bilevel.trained_module import unwrap
from steelyard.bilevel.window import check_outer, outer_gradient

__all__ = ["Alignment", "LookAhead", "SGDLookAhead", "look_ahead", "untouched"]

Weigh: TypeAlias = Callable[[Tensor], Tensor]
"""From the losses ``(batch,)`` of the samples of a step to their weights ``(batch,)``; both without a graph."""


class LookAhead:
    """d outer / d weight of the samples of the next step: ``look_ahead(batch, weight, outer) -> (batch,)``.

    The step is the user's optimizer's own, from its present state and settings. Afterwards parameters, buffers,
    gradients, the optimizer and the random state are what they were. The optimizer's hooks and schedulers do not see
    the step: a copy of the optimizer takes it, over the same parameters.

    Cost, in forward passes of the batch: 3 for the step, 1 or 2 for the derivative; and the gradient of `outer`.
    Memory: a copy of the parameters and of the optimizer's state beside the record of one step.

    Args:
        model: the module that `optimizer` trains.
        optimizer: any that `Recorder` takes.
        objective: the inner loss of the step.

    Attributes:
        losses: None: its forward passes do not serve the step that follows (`SGDLookAhead`'s do).

    Raises:
        TypeError, ValueError: as `Recorder`.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, objective: WeightedLoss) -> None:
        self._model, self._optimizer, self._objective = model, optimizer, objective
        self._copy = copy.copy(optimizer)
        self._recorder = Recorder(model, self._copy, objective, reuse=True)
        self._estimator = Truncated()
        self.losses: Tensor | None = None

    def of_losses(self, batch: Batch, weigh: Weigh, outer: Outer) -> Float[Tensor, " batch"]:
        """Return d outer / d weight ``(batch,)``, where the weights are made of the losses of the batch.

        Args:
            batch, outer: see `__call__`.
            weigh: called once.
        """
        with untouched(self._model), torch.no_grad():
            losses = self._objective.sample_losses(self._model, batch)
        return self(batch, weigh(losses), outer)

    def __call__(self, batch: Batch, weight: Float[Tensor, " batch"], outer: Outer) -> Float[Tensor, " batch"]:
        """Return d outer / d weight, row by row of `batch` (a sample that stands in two rows has two).

        Args:
            batch: the samples of the step.
            weight: ``(batch,)`` at which the derivative is taken.
            outer: ``module -> scalar``, evaluated after the step, in the mode that the module is in.
        """
        rows = replace(batch, index=torch.arange(len(batch), device=batch.device))
        with untouched(self._model), torch.enable_grad():
            self._copy.param_groups = [dict(group) for group in self._optimizer.param_groups]
            self._copy.state = _cloned(self._optimizer.state)
            self._copy.zero_grad()
            self._recorder.loss(rows, weight).backward()
            self._copy.step()
            return self._estimator(self._recorder.trajectory(), outer)


class SGDLookAhead:
    """What `LookAhead.of_losses` returns, for `torch.optim.SGD`: its step is taken by copies, beside the model.

    SGD is linear in the gradient: d outer / d weight is ``factor <grad outer(parameters after the step), grad l_i>``,
    the gradients of the samples' losses where the model stands. So one forward pass of the batch serves the weights,
    the look ahead and the step that follows (`losses`), and of the step nothing is recorded but its gradient, against
    which the answer is checked as in `Truncated`.

    Cost, in forward passes of the batch: 3 for the gradient, of which 1 may be the ordinary step's own, and 1 or 2 for
    the derivative; and the gradient of `outer`. Memory: a copy of the parameters and of the optimizer's state.

    Args:
        model: the module that `optimizer` trains.
        optimizer: SGD.
        objective: the inner loss of the step; a `WeightedLoss` divided by rows.

    Attributes:
        losses: as `Alignment` has it.

    Raises:
        TypeError, ValueError: as `Recorder`.
    """

    def __init__(self, model: nn.Module, optimizer: SGD, objective: WeightedLoss) -> None:
        self._model, self._optimizer, self._objective = model, optimizer, objective
        self._copy = copy.copy(optimizer)
        self._recorder = Recorder(model, self._copy, objective, reuse=True)
        self._ladder = Truncated().ladder
        self._memory: dict[str, Tensor] = {}
        self.losses: Tensor | None = None

    @staticmethod
    def knows(model: nn.Module, optimizer: Optimizer, objective: WeightedLoss) -> bool:
        """Whether the next step can be taken so; else take `LookAhead`."""
        if type(optimizer) is not SGD or any(group.get("differentiable") for group in optimizer.param_groups):
            return False
        return unwrap(model) is model and summed_by_weight(objective) is not None

    def of_losses(self, batch: Batch, weigh: Weigh, outer: Outer) -> Float[Tensor, " batch"]:
        """See `LookAhead.of_losses`; `outer` must read the parameters of the module that it is given.

        Raises:
            FloatingPointError: `outer` is NaN or infinite.
            ValueError: `outer` depends on none of the optimizer's parameters, or reads one by another way.
            NoDerivative: no way to the derivative stands the checks.
        """
        self.losses = None
        ones = torch.ones(len(batch), device=batch.device, dtype=next(self._model.parameters()).dtype)
        with untouched(self._model, parameters=False), torch.enable_grad():
            self._copy.param_groups = [dict(group) for group in self._optimizer.param_groups]
            self._recorder.loss(batch, ones)
            findings = self._recorder.findings
            assert findings is not None
            losses = findings.losses
            assert losses is not None
            weight = weigh(losses.detach())
            for p in self._model.parameters():
                p.grad = None
            self._objective.reduce(self._model, losses, weight).backward(retain_graph=True)
            run = self._recorder.at_rest()
            (step,) = run.steps
            step.weight = weight
            final = run.final()
            step.findings.gradient = {
                name: (dense(p.grad, name), p.grad._version) for name, p in final.items() if p.grad is not None
            }
            ahead, factors = self._stepped(final)
            slope = outer_gradient(run, outer, at=ahead).parameters
            factor = 1.0
            if len(set(factors.values())) == 1:  # one number for all: a pass over all parameters less
                factor, factors = next(iter(factors.values())), {}
            direction = {name: one.mul_(factors[name]) if factors else one for name, one in slope.items()}
            objection = objection_to(run, step, direction)
            found = self._ladder.losses(run, step, step.parameters, direction, step.batch, objection)
        if step.findings.forward_record is not None and step.findings.separable and not step.conditions.buffers:
            self.losses = losses
        return run.weighted.pull(found, found, weight) * factor

    def _stepped(self, parameters: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return parameters after the optimizer's step, and what an entry of the gradient moves the parameter's by."""
        names = {p: name for name, p in parameters.items()}
        taken = copy.copy(self._optimizer)
        taken.param_groups, taken.state = [], defaultdict(dict)
        ahead, factors = {name: p.detach() for name, p in parameters.items()}, dict.fromkeys(parameters, 0.0)
        for group in self._optimizer.param_groups:
            moved = []
            for p in group["params"]:
                if p not in names or p.grad is None:
                    continue
                name, state = names[p], self._optimizer.state.get(p, {})
                factors[name] = SGDPullback().factor(group, SGDPullback().keep(state))
                ahead[name] = self._copied(name, p)
                moved.append(ahead[name])
                moved[-1].grad = p.grad
                taken.state[moved[-1]] = {
                    key: self._copied(f"{key} of {name}", value) if isinstance(value, Tensor) else value
                    for key, value in state.items()
                }
            taken.param_groups.append({**group, "params": moved})
        taken.step()
        for one in ahead.values():
            one.grad = None
        return ahead, factors

    def _copied(self, name: str, value: Tensor) -> Tensor:
        """Return a copy, in the memory of the last call's where that fits: new memory costs more than the copy."""
        known = self._memory.get(name)
        if known is None or (known.shape, known.dtype, known.device) != (value.shape, value.dtype, value.device):
            known = self._memory[name] = torch.empty_like(value, requires_grad=False)
        return known.copy_(value.detach())


def look_ahead(model: nn.Module, optimizer: Optimizer, objective: WeightedLoss) -> LookAhead | SGDLookAhead:
    """Return what looks ahead to the next step of `optimizer`, by the cheaper way where it has one."""
    if isinstance(optimizer, SGD) and SGDLookAhead.knows(model, optimizer, objective):
        return SGDLookAhead(model, optimizer, objective)
    return LookAhead(model, optimizer, objective)


class Alignment:
    """d outer / d weight of the samples of a plain gradient step, at weights 0: ``-<grad outer, grad l_i> / b``.

    At weights 0 such a step leaves the parameters where they are (without a regulariser), so none is taken: `LookAhead`
    with plain `SGD` of step 1 has the same derivative. What it leaves as it was, too, and the ways to each product are
    the same, checks included.

    Cost, in forward passes of the batch: 1, which may be the ordinary step's own (`losses`), and 2 for the derivative;
    and the gradient of `outer`. No copies of parameters. (In a chain of affine layers the derivative is one product of
    the rows that entered a layer and of what a backward pass sends to its output; elsewhere a forward-mode pass.)

    Args:
        model: the module that `optimizer` trains.
        optimizer: of its parameters; it is asked for these alone.
        objective: the inner loss; without a regulariser.

    Attributes:
        losses: ``(batch,)`` of the last call, with their graph, where another forward pass would be the same and leave
            no other trace: the module has no buffers and drew no random numbers. Else None.

    Raises:
        TypeError, ValueError: as `Recorder`.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, objective: WeightedLoss) -> None:
        self._model = model
        self._recorder = Recorder(model, optimizer, objective, reuse=True)
        self._ladder = Truncated().ladder
        self.losses: Tensor | None = None

    def __call__(self, batch: Batch, outer: Outer) -> Float[Tensor, " batch"]:
        """Return d outer / d weight ``(batch,)``.

        Args:
            batch: the samples of the step.
            outer: ``module -> scalar``, evaluated in the mode that the module is in.

        Raises:
            FloatingPointError: `outer` is NaN or infinite.
            ValueError: `outer` depends on none of the optimizer's parameters.
        """
        self.losses = None
        weight = torch.ones(len(batch), device=batch.device, dtype=next(self._model.parameters()).dtype)
        with untouched(self._model, parameters=False), torch.enable_grad():
            self._recorder.loss(batch, weight)
            run = self._recorder.at_rest()
            (step,) = run.steps
            slope = self._slope(run.final(), outer)
            found = self._ladder.losses(run, step, step.parameters, slope, step.batch).neg()
        if step.findings.separable and not step.conditions.buffers:
            self.losses = step.findings.losses
        return run.weighted.pull(found, found, weight)  # (divided by rows, whatever the weights)

    def _slope(self, parameters: dict[str, Tensor], outer: Outer) -> dict[str, Tensor]:
        """Return the gradient of `outer` by the parameters."""
        value = outer(self._model)
        check_outer(value)
        for p in parameters.values():
            p.grad = None
        # One that was frozen since takes no gradient, and an ordinary step would not move it.
        backward_into(self._model, value, {name: p for name, p in parameters.items() if p.requires_grad})
        if all(p.grad is None for p in parameters.values()):
            raise ValueError("the clean loss depends on none of the parameters that the optimizer trains")
        return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()}


@contextmanager
def untouched(model: nn.Module, parameters: bool = True) -> Iterator[None]:
    """Put back what is done inside to parameters, gradients and buffers of `model`, and to the random state.

    Args:
        model: the module.
        parameters: whether its parameters are written to inside.
    """
    own, buffers = list(model.parameters()), list(model.buffers())
    tensors = [*own, *buffers] if parameters else buffers
    before = [tensor.detach().clone() for tensor in tensors]
    gradients = [(p, p.grad) for p in own]
    devices = sorted({tensor.get_device() for tensor in [*own, *buffers] if tensor.is_cuda})
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
        for p, gradient in gradients:
            p.grad = gradient


def _cloned(state: Mapping[Tensor, dict[str, Any]]) -> defaultdict[Tensor, dict[str, Any]]:
    """Return an optimizer's state in memory of its own."""
    found: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
    for parameter, entries in state.items():
        found[parameter] = {
            name: value.detach().clone() if isinstance(value, Tensor) else value for name, value in entries.items()
        }
    return found
