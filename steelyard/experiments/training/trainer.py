"""The one trainer: minimises a weighted mean loss (the rule), plus a penalty (the risk), plus L2.

A method is a choice of these; see `steelyard.experiments.methods`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steelyard._support import _check
from steelyard._support._finite import all_finite, named_culprits, some_ids
from steelyard._support._modules import parameters_of
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.objective import SampleLoss
from steelyard.checkpoint import Stateful
from steelyard.distributed import ALONE, Ranks
from steelyard.experiments.training.batch_shards import BatchShard, batch_shards
from steelyard.experiments.training.batches import shuffled
from steelyard.experiments.training.precision import Bfloat16, takes_bfloat16
from steelyard.experiments.training.problem import Observer, Problem
from steelyard.experiments.training.ranges import FIXED, SUBPOPBENCH, Fixed, Range
from steelyard.reweight import Risk
from steelyard.reweight.rules import Rule, Uniform

__all__ = ["Anneal", "Learner", "OptimizerSettings", "Perturb", "Training", "schedule", "train"]

Perturb = Callable[[nn.Module, Batch, int], Batch]
"""(model, batch, steps done) -> the batch that the step is taken on; the model is left as it was."""


@dataclass(frozen=True)
class OptimizerSettings:
    """Which torch optimizer, and its settings."""

    name: Literal["sgd", "adam"] = "adam"
    learning_rate: Annotated[float, Range.log10(-4, -2, SUBPOPBENCH)] = 1e-3
    momentum: Annotated[float, FIXED] = 0.0  # SGD only
    weight_decay: Annotated[float, Range.log10(-6, -3, SUBPOPBENCH)] = 0.0

    def __post_init__(self) -> None:
        _check.in_range("learning_rate", self.learning_rate, low=0.0, open_low=True)
        _check.in_range("momentum", self.momentum, low=0.0, high=1.0, open_high=True)
        _check.in_range("weight_decay", self.weight_decay, low=0.0)
        if self.name != "sgd" and self.momentum:
            raise ValueError(f"momentum is a setting of 'sgd', the optimizer is {self.name!r}")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimizer over `parameters`."""
        if self.name == "sgd":
            return torch.optim.SGD(
                parameters, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
            )
        return torch.optim.Adam(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class Training:
    """How long and how a model is trained.

    Attributes:
        steps: optimizer steps.
        batch_size: samples a step, drawn without replacement and reshuffled each epoch; 0 takes all of them.
        l2: the coefficient of the sum of squares of all parameters in the loss.
        evaluate_every: steps between two evaluations; the last step is always evaluated.
        bfloat16: run the model's forward pass under autocast to bfloat16; "auto": where that is faster, which is
            measured when a run begins and written into it. Parameters, losses and penalties stay in single precision;
            evaluation does not use it.
        optimizer: the optimizer.
    """

    steps: Annotated[int, Fixed("what the run may cost")] = 300
    batch_size: Annotated[int, Range.log2(6, 6.75, SUBPOPBENCH, whole=True, off=0)] = 0
    l2: Annotated[float, Fixed("weight_decay is drawn")] = 0.0
    evaluate_every: Annotated[int, FIXED] = 10
    bfloat16: Bfloat16 = False
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)

    def __post_init__(self) -> None:
        _check.integer("steps", self.steps, low=1)
        _check.integer("batch_size", self.batch_size, low=0)
        _check.integer("evaluate_every", self.evaluate_every, low=1)
        _check.in_range("l2", self.l2, low=0.0)


@dataclass(frozen=True)
class Anneal:
    """The penalty's weight over the steps: `before` until `at` steps are done, `weight` from then on.

    The whole loss is divided by the weight once this is above 1, so that gradients keep their size (as in the
    published code of IRMv1 and V-REx).
    """

    weight: Annotated[float, Range.log10(-1, 5, SUBPOPBENCH)] = 1e4
    before: Annotated[float, FIXED] = 1.0
    at: Annotated[int, Range.log10(0, 4, SUBPOPBENCH, whole=True)] = 100

    def __post_init__(self) -> None:
        _check.in_range("weight", self.weight, low=0.0)
        _check.in_range("before", self.before, low=0.0)
        _check.integer("at", self.at, low=0)

    def __call__(self, step: int) -> float:
        """Return the weight at `step`, counted from 0."""
        return self.before if step < self.at else self.weight


def schedule(
    optimizer: torch.optim.Optimizer, *factors: Callable[[int], float]
) -> torch.optim.lr_scheduler.LRScheduler:
    """From now on multiply the learning rates: that of each parameter group by its factor of the steps done.

    Returns:
        What counts the steps: something that `train` has to `carry`.
    """
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, list(factors))
    optimizer.register_step_post_hook(lambda *unused: scheduler.step())
    return scheduler


class Learner:
    """A model in training: what one step on one batch does.

    The loss of a step is ``(rule's weighted loss + l2 ||theta||^2 + lambda penalty) / max(1, lambda)``, with
    lambda = anneal(step), steps counted from 0.

    Args:
        model: trained in place; its `parameters()` are what the L2 term sees.
        loss: the per-sample loss.
        settings: the L2 coefficient and, where none is given, the optimizer.
        rule: the sample weights.
        penalty: a risk added to the weighted loss.
        anneal: the penalty's weight; required with a penalty.
        optimizer: over the model's parameters (default: as in the settings).
        perturb: what each step does to its batch first (default: nothing); see `adversarial.Adversary`.
        ranks: the processes that train the model together. A step is given a `BatchShard` of the batch, and rule and
            penalty are those of the whole batch.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: SampleLoss,
        settings: Training,
        *,
        rule: Rule | None = None,
        penalty: Risk | None = None,
        anneal: Anneal | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        perturb: Perturb | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        if (penalty is None) != (anneal is None):
            raise ValueError("penalty and anneal come together: a penalty needs its weight")
        self.model, self.loss, self.l2 = model, loss, settings.l2
        self.bfloat16 = takes_bfloat16(settings.bfloat16, next(model.parameters()).device)
        self.rule = Uniform() if rule is None else rule
        self.penalty, self.anneal = penalty, anneal
        self.optimizer = settings.optimizer.build(model.parameters()) if optimizer is None else optimizer
        self.perturb = perturb
        self.done = 0
        self._wrapped = ranks.wrap(model)

    def step(self, batch: Batch) -> tuple[float, Float[Tensor, " b"]]:
        """Take one step; return its loss and the per-sample losses before it, without a graph.

        Raises:
            FloatingPointError: a loss or a gradient is NaN or infinite; the parameters are those before the step.
        """
        if self.perturb is not None:
            batch = self.perturb(self.model, batch, self.done)
        outputs, seen = self._forward(batch.inputs), batch
        if isinstance(batch, BatchShard):
            outputs, seen = batch.outputs_of_all(outputs), batch.whole
        losses = self.loss(outputs, seen.targets)
        total = self.rule.mean(losses, seen)
        if self.l2:
            squares = (p.square().sum() for p in self.model.parameters())
            total = total + self.l2 * sum(squares, torch.zeros((), device=total.device))
        if self.penalty is not None and self.anneal is not None:
            strength = self.anneal(self.done)
            if strength:  # a penalty that is not wanted yet is not computed
                total = total + strength * self.penalty(outputs, seen, self.loss)
            total = total / max(1.0, strength)
        self.optimizer.zero_grad()
        total.backward()
        value, losses = float(total.detach()), losses.detach()
        gradients = [p.grad for p in parameters_of(self.optimizer) if p.grad is not None]
        if not (math.isfinite(value) and all_finite(gradients)):
            raise self._not_finite(value, losses, batch, seen.index)
        self.optimizer.step()
        self.done += 1
        return value, losses

    def _not_finite(self, value: float, losses: Tensor, batch: Batch, index: Tensor) -> FloatingPointError:
        """Return an error that names the step, what is NaN or infinite, and the samples."""
        bad = ~torch.isfinite(losses)
        if bool(bad.any()):
            what = f"the loss of {some_ids(index[bad])} is {losses[bad][0].item()}"
        else:
            ids = some_ids(index)
            what = f"the loss of the step is {value}, that of each sample finite, on {ids}"
            if math.isfinite(value):
                what = f"the loss is {value:.4g} and its gradient not finite, on {ids}"
        culprits = named_culprits(self.model, batch.inputs, batch.index, gradients=not bool(bad.any()))
        found = f"; NaN or infinite: {culprits}" if culprits else ""
        return FloatingPointError(f"step {self.done + 1}: {what}{found}; a smaller learning rate may help")

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on but the batch."""
        return {"done": self.done, **{name: part.state_dict() for name, part in self._parts().items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.done = state["done"]
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Stateful]:
        parts = {"model": self.model, "optimizer": self.optimizer, "rule": self.rule, "penalty": self.penalty}
        return {name: part for name, part in parts.items() if isinstance(part, Stateful)}

    def _forward(self, inputs: Tensor) -> Tensor:
        if not self.bfloat16:
            return self._wrapped(inputs)
        with torch.autocast(inputs.device.type, torch.bfloat16):
            outputs = self._wrapped(inputs)
        return outputs.float()  # penalties are small differences of means: eight bits would lose them


def train(
    problem: Problem,
    settings: Training,
    observe: Observer,
    *,
    rule: Rule | None = None,
    penalty: Risk | None = None,
    anneal: Anneal | None = None,
    data: Batch | None = None,
    rows: Iterator[Tensor] | None = None,
    model: nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    carry: Mapping[str, Stateful] | None = None,
    perturb: Perturb | None = None,
    loss: SampleLoss | None = None,
) -> nn.Module:
    """Train a model of `problem` and return it: a stage of the problem's journal.

    Args:
        problem: data, model and seed.
        settings: steps, batches, optimizer.
        observe: called after each evaluated step.
        rule: the sample weights (default: all the same); see `Learner` for the loss of a step.
        penalty: a risk added to the weighted loss.
        anneal: the penalty's weight; required with a penalty.
        data: the samples (default: the training samples of the problem).
        rows: the positions in `data` that each step is taken on (default: all of them, by `settings.batch_size`); on
            several ranks those in the samples of all, of which `data` is this one's share.
        model: what is trained, in place (default: a new model of the problem).
        optimizer: over the model's parameters (default: as in the settings).
        carry: what else the steps change: a learning rate's schedule, a generator. What model, optimizer, rule and
            penalty have as `state_dict` need not be named.
        perturb: what each step does to its batch first (default: nothing).
        loss: what is trained by, where it is not the problem's loss, by which models are measured.

    Raises:
        FloatingPointError: see `Learner.step`.
    """
    model = problem.model() if model is None else model
    learner = Learner(
        model,
        problem.loss if loss is None else loss,
        settings,
        rule=rule,
        penalty=penalty,
        anneal=anneal,
        optimizer=optimizer,
        perturb=perturb,
        ranks=problem.ranks,
    )
    data = problem.splits.train if data is None else data
    if rows is None:
        rows = shuffled(torch.arange(problem.ranks.place(len(data))[1]), settings.batch_size, problem.seed)
    with problem.ranks.listening(), problem.journal.stage(learner=learner, **(carry or {})) as stage:
        left = itertools.islice(rows, stage.done, settings.steps)
        batches = batch_shards(data, left, problem.seed, stage.done, problem.ranks)
        for done in range(stage.done + 1, settings.steps + 1):
            value, _ = learner.step(next(batches))
            if done % settings.evaluate_every == 0 or done == settings.steps:
                observe(done, model, {"loss": value})
            stage.step(done, last=done == settings.steps)
    return model
