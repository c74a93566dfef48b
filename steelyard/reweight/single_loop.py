"""Stochastic single-loop solvers: model, linear system and weights move together, a minibatch of each level a step."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from steelyard._support import _check
from steelyard._support._modules import parameters_of
from steelyard.bilevel import Batch, WeightedLoss
from steelyard.bilevel.products import Products, gradient_of, products
from steelyard.bilevel.sweep.coupling import changes_with_company
from steelyard.checkpoint import Journal, Stateful
from steelyard.reweight.admission import check_no_graph
from steelyard.reweight.minibatch_method import MinibatchMethod, check_train
from steelyard.reweight.minibatches import blamed, blocks, taken
from steelyard.reweight.outer_risk import OuterRisk
from steelyard.reweight.result import Reweighting
from steelyard.reweight.risk import MeanRisk, Risk

__all__ = ["SingleLoop", "SingleLoopStep"]

MEAN = MeanRisk()
ADAM = partial(Adam, lr=0.1)


@dataclass(frozen=True)
class SingleLoopStep:
    """What one step of a single-loop solver saw.

    Attributes:
        step: its number, from 0.
        loss: the weighted loss of the inner minibatch, before the step.
        clean_loss: the outer risk of the outer minibatch, before the step.
    """

    step: int
    loss: float
    clean_loss: float


class SingleLoop(MinibatchMethod):
    """Move the model and the weights at once: min over x of F(theta*(x)), theta*(x) = argmin G(x, theta).

    G(x, theta) = (1/n) sum w_i(x) l_i(theta) + regulariser over the training samples, F the risk of the clean ones.
    theta is not trained to its end before x moves: a step takes one minibatch of each level, and what it needs beside
    (a solution of a linear system, a second model) is kept from step to step as theta is.

    The model is used in the mode that it is in. Parameters that no optimizer moves are constants.

    Args:
        model: the module; it is trained, and is the result as much as the weights are.
        optimizer: of its parameters: takes the inner steps. The papers' is plain SGD.
        objective: the inner loss; its per-sample loss and regulariser are used, its divisor is not. A strongly convex G
            is what the papers assume: give it a regulariser, an L2 term, say.
        clean: samples that the weights must do well on.
        weights: a module from global ids ``(k,)`` to weights ``(k,)`` >= 0: `SampleWeights`, `FeatureWeights`.
        outer_optimizer: makes the optimizer of the weights' parameters; default Adam, step 0.1. The papers' is SGD,
            whose step must be of the size of n, as each weight moves G by a share of 1/n.
        clean_size: so many of the clean samples at each step; None: as many as training samples.
        risk: of a minibatch of the clean samples; default their mean loss.
        seed: of the minibatches in `fit`.

    Raises:
        TypeError: an argument of another kind.
        ValueError: `clean` is empty, or `clean_size` is out of range; the optimizer decays weights, or moves nothing of
            `model`.
        NotImplementedError: a `model` or an `objective` of several processes; an optimizer whose step needs a closure.
    """

    part = "solver"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        objective: WeightedLoss,
        clean: Batch,
        weights: nn.Module,
        *,
        outer_optimizer: Callable[[Iterable[Tensor]], Optimizer] = ADAM,
        clean_size: int | None = None,
        risk: Risk = MEAN,
        seed: int = 0,
    ) -> None:
        super().__init__(model, optimizer, objective, risk, seed)
        self.clean = _check.instance("clean", clean, Batch, "a Batch of clean samples")
        if not len(clean):
            raise ValueError("clean is empty: give samples with right labels")
        check_no_graph("clean", clean)
        if clean_size is not None:
            clean_size = _check.integer("clean_size", clean_size, low=1, high=len(clean))
        self.clean_size = clean_size
        self.weights = _check.instance("weights", weights, nn.Module, "a module, such as SampleWeights(len(train))")
        _check.function("outer_optimizer", outer_optimizer, "a function that makes an optimizer of parameters")
        self._make_outer_optimizer = outer_optimizer
        self._outer_parameters = [p for p in weights.parameters() if p.requires_grad]
        if not self._outer_parameters:
            raise ValueError("weights have no parameter that requires a gradient: there is nothing to learn")
        self.outer_optimizer = outer_optimizer(self._outer_parameters)
        self._parameters = trained(optimizer)
        self._check_optimizer()
        self._checked = False
        self._epoch = {"steps": 0.0, "loss": 0.0, "clean_loss": 0.0}

    @abstractmethod
    def _advance(self, inner: Batch, outer: Batch) -> tuple[Tensor, Tensor]:
        """Take a step and return the loss of `inner` and the risk of `outer`, as they were before."""

    @property
    def period(self) -> int:
        """The weights move once in so many steps."""
        return 1

    def begin(self, train: Batch, batch_size: int) -> tuple[Batch, int]:
        """Check the samples of the inner problem and the size of its minibatches, and prepare for them.

        `fit` calls this. Of the solvers here SABA alone needs it before a `step` of one's own.

        Raises:
            ValueError: no samples, or samples that share an id.
        """
        check_train(train)
        return train, _check.integer("batch_size", batch_size, low=1)

    def step(self, inner: Batch, outer: Batch) -> SingleLoopStep:
        """Take one step, on a minibatch of training samples and one of clean samples.

        Raises:
            ValueError: an empty batch; weights that are not one a sample, or negative; samples that meet in the model,
                as in BatchNorm in training mode; an optimizer that has other parameters than at the start.
            NotImplementedError: an operator without a second derivative.
            FloatingPointError: a loss is NaN or infinite.
        """
        for name, batch in (("inner", inner), ("outer", outer)):
            if not len(_check.instance(name, batch, Batch, "a Batch: Batch(inputs, targets, index)")):
                raise ValueError(f"{name} is empty; leave it out")
        self._check_optimizer()
        _check_batch_norm(self.model, type(self).__name__)
        if not self._checked:
            self._check_first(inner)
            self._checked = True
        found = [float(value) for value in self._advance(inner, outer)]
        if not all(map(math.isfinite, found)):
            raise FloatingPointError(
                f"step {self.steps}: the inner loss is {found[0]}, the outer risk {found[1]}; {blamed(inner, outer)}"
            )
        self.steps += 1
        return SingleLoopStep(self.steps - 1, *found)

    def fit(
        self,
        train: Batch,
        *,
        epochs: int,
        batch_size: int,
        callbacks: Iterable[Callable[[SingleLoopStep], bool | None]] = (),
        journal: Journal | None = None,
        carry: Mapping[str, Stateful] | None = None,
    ) -> Reweighting:
        """Take steps over all of `train`, in minibatches. Called again, it goes on.

        The samples are cut into the same minibatches in every epoch, which come in an order of their own; so are the
        clean ones, whose epochs are their own, too.

        Args:
            train: ``n`` samples with distinct ids, those that the weights are of.
            epochs: passes over them.
            batch_size: the last minibatch may be smaller.
            callbacks: called with a `SingleLoopStep` after each step, to move a learning rate, say; True stops.
            journal: where checkpoints are written; if it has one of this run, the run resumes from it, bit for bit.
            carry: what else, of the callbacks (a scheduler, say), is kept with a checkpoint.

        Returns:
            What `result` gives. The history has one row an epoch: epoch, loss and clean_loss, means over its steps.

        Raises:
            ValueError: so few steps that the weights would not move.
            CheckpointError: the journal has a run of other settings or samples; beside that, what `step` raises.
        """
        train, batch_size = self.begin(train, batch_size)
        epochs = _check.integer("epochs", epochs, low=1)
        steps = self.steps + epochs * -(-len(train) // batch_size)
        if steps < self.period:
            raise ValueError(
                f"epochs: after {epochs} of batches of {batch_size} {type(self).__name__} has taken {steps} steps, and "
                f"it moves the weights once in {self.period}: take more epochs or a smaller batch_size"
            )
        self._carry_out(
            train,
            epochs,
            batch_size,
            callbacks,
            journal,
            carry,
            lambda done, left: self._batches(train, batch_size, left),
            lambda pair: self.step(*pair),
        )
        return self.result(train.index)

    @torch.no_grad()
    def result(self, index: Int[Tensor, " n"]) -> Reweighting:
        """Return the weights of the samples with these ids ``(n,)``; each has the keep-probability 1."""
        found = self.weights(index).detach().cpu()
        return Reweighting(found, torch.ones_like(found), [dict(row) for row in self.history], index.cpu())

    def state_dict(self) -> dict[str, Any]:
        """Return what the solver has beside the model and its optimizer: tensors, numbers, lists and dicts only."""
        return {
            "weights": {name: value.clone() for name, value in self.weights.state_dict().items()},
            "outer_optimizer": self.outer_optimizer.state_dict(),
            "steps": self.steps,
            "history": [dict(row) for row in self.history],
            "epoch": dict(self._epoch),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.weights.load_state_dict(state["weights"])
        self.outer_optimizer.load_state_dict(state["outer_optimizer"])
        self.steps = state["steps"]
        self.history = [dict(row) for row in state["history"]]
        self._epoch = dict(state["epoch"])

    def _weigh(self, batch: Batch) -> Tensor:
        """Return the weights of a minibatch ``(batch,)``, with a graph to the outer parameters."""
        with torch.enable_grad():
            weight: Tensor = self.weights(batch.index)
        if weight.shape != (len(batch),):
            raise ValueError(f"weights must give one number a sample, ({len(batch)},), got {tuple(weight.shape)}")
        if bool((weight < 0).any()):
            raise ValueError(f"weights gave {float(weight.detach().min())}; they must be >= 0: end them with a sigmoid")
        return weight

    def _check_optimizer(self) -> None:
        """Raise unless the optimizer moves `_parameters` down the gradient of G, and of nothing beside G."""
        name, optimizer = type(self).__name__, self.optimizer
        self._refuse_closure()
        if not self._parameters:
            raise ValueError("optimizer moves no parameter that requires a gradient: there is nothing to train")
        if [id(p) for p in trained(optimizer)] != [id(p) for p in self._parameters]:
            raise ValueError(f"optimizer has other parameters than when {name} was made: make {name} after the last")
        if decay := next((d for group in optimizer.param_groups if (d := group.get("weight_decay"))), None):
            raise ValueError(
                f"optimizer: weight_decay = {decay:g} is a part of the inner problem that {name} cannot see: set it to "
                "0 and give the objective a regulariser, such as lambda m: 0.5 * decay * sum of squares"
            )

    def _check_first(self, batch: Batch) -> None:
        """Raise where the first minibatch shows that a minibatch is no part of one sum."""
        model = copy.deepcopy(self.model)  # (a forward pass may write to buffers)
        if changes_with_company(lambda part: self.objective.sample_losses(model, part), batch):
            raise ValueError(
                f"{type(self).__name__} takes a minibatch for a part of one sum, and the samples' losses change with "
                "who is beside them: take what mixes samples out of the model, or take LearningToReweight or Maple"
            )

    def _products(self, batch: Batch, weight: Tensor, direction: Sequence[Tensor]) -> Products:
        return products(self.model, self.objective, batch, weight, self._parameters, direction)

    def _risk(self, batch: Batch, model: nn.Module, parameters: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return F on a minibatch of the clean samples, and its gradient by `parameters`."""
        risk = OuterRisk(self.risk, batch, self.objective.loss, forward=self.objective.outputs_of)
        with torch.enable_grad():
            value = risk(model)
            slope = gradient_of(value, parameters)
        return value.detach(), slope

    def _through(self, weight: Tensor, tangents: Tensor) -> tuple[Tensor, ...]:
        """Return the derivative by the outer parameters from that by the weights of a minibatch ``(batch,)``."""
        return torch.autograd.grad(
            weight,
            self._outer_parameters,
            tangents.to(weight.device, weight.dtype),
            allow_unused=True,
            materialize_grads=True,
        )

    def _move_weights(self, slope: Sequence[Tensor]) -> None:
        """Step the outer optimizer down `slope`, a tensor for each outer parameter."""
        descend(self.outer_optimizer, self._outer_parameters, slope)
        project = getattr(self.weights, "project", None)
        if project is not None:
            project()

    def _settings(self) -> dict[str, Any]:
        """Return the settings of the method that a journal knows a run by."""
        shapes = {name: tuple(value.shape) for name, value in self.weights.state_dict().items()}
        return {
            "risk": self.risk,
            "seed": self.seed,
            "clean_size": self.clean_size,
            "objective": self.objective,
            "weights": type(self.weights).__name__,
            "weights' tensors": shapes,
            "outer_optimizer": self._make_outer_optimizer,
        }

    @property
    def _clean_samples(self) -> Batch:
        return self.clean

    def _batches(self, train: Batch, size: int, count: int) -> Iterator[tuple[Batch, Batch]]:
        """Yield the next `count` minibatches of each level."""
        clean_size = min(self.clean_size or size, len(self.clean))
        inner = blocks(len(train), size, self.seed, self.steps)
        outer = blocks(len(self.clean), clean_size, self.seed + 1, self.steps)
        yield from zip(
            taken(train, (next(inner) for _ in range(count)), self.seed, self.steps),
            taken(self.clean, (next(outer) for _ in range(count)), self.seed + 1, self.steps),
            strict=True,
        )

    def _note(self, seen: SingleLoopStep, ends: bool) -> None:
        """Count a step of `fit` in the row of its epoch; file that row where the epoch `ends`."""
        row = self._epoch
        for name, value in {"steps": 1.0, "loss": seen.loss, "clean_loss": seen.clean_loss}.items():
            row[name] += value
        if ends:
            means = {name: row[name] / row["steps"] for name in ("loss", "clean_loss")}
            self.history.append({"epoch": len(self.history), **means})
            self._epoch = dict.fromkeys(row, 0.0)


def trained(optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters that `optimizer` moves."""
    return [p for p in parameters_of(optimizer) if p.requires_grad]


def descend(optimizer: Optimizer, parameters: Sequence[Tensor], slope: Sequence[Tensor]) -> None:
    """Step `optimizer` with `slope` as the gradients of `parameters`."""
    for p, one in zip(parameters, slope, strict=True):
        p.grad = one
    optimizer.step()


def learning_rate(optimizer: Optimizer) -> float:
    """Return the present learning rate of an optimizer's first group."""
    return float(optimizer.param_groups[0]["lr"])


def _check_batch_norm(model: nn.Module, name: str) -> None:
    """Raise ValueError where a sample's loss depends on who is beside it: a minibatch is then no estimate of one G."""
    for place, layer in model.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and (layer.training or layer.running_mean is None):
            raise ValueError(
                f"{name} takes a minibatch for a part of one sum, and the layer {place!r} ({type(layer).__name__}) "
                "normalises by the minibatch: put it in eval mode or exchange it for GroupNorm, or take "
                "LearningToReweight or Maple"
            )
