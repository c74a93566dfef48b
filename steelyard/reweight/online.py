"""Weights found while the model is trained, one minibatch at a time: what every online method shares."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer

from steelyard._support import _check
from steelyard._support._finite import some_ids
from steelyard.bilevel import Batch, Outer, WeightedLoss
from steelyard.checkpoint import Journal, Stateful
from steelyard.reweight.admission import check_no_graph
from steelyard.reweight.clean import Balanced, CleanSamples
from steelyard.reweight.minibatch_method import MinibatchMethod, check_train
from steelyard.reweight.minibatches import blamed, shuffled, taken
from steelyard.reweight.outer_risk import OuterRisk
from steelyard.reweight.result import Reweighting
from steelyard.reweight.risk import MeanRisk, Risk
from steelyard.reweight.visits import Visits

__all__ = ["Online", "OnlineStep"]

_MEAN = MeanRisk()


@dataclass
class OnlineStep:
    """What one step of an online method did.

    Attributes:
        step: its number, from 0.
        loss: the weighted loss of the batch, before the step.
        clean_loss: the outer risk on the clean samples after the step that was looked ahead to.
        weights: ``(batch,)`` that the step was taken with, 1 for a weight as in ordinary training. All 0: no step.
        index: ``(batch,)`` global ids.
    """

    step: int
    loss: float
    clean_loss: float
    weights: Float[Tensor, " batch"]
    index: Int[Tensor, " batch"]


class Online(MinibatchMethod):
    """Train a model once, and weigh the samples of each minibatch by what they do to the loss on clean samples.

    Three ways to use one, from the least of your own loop to the most: `fit`; `step` with a batch, which does all that
    an ordinary step does; or `loss`, instead of the loss of the loop (`weights` alone, for any other form of it).
    In each the loss is sum w_i l_i / b over the b rows of a batch.

    A look ahead leaves no trace: parameters, buffers, the optimizer and the random state are put back, so that dropout
    draws the same noise in the step that follows.

    Args:
        model: the module; it is trained, and is the result as much as the weights are.
        optimizer: of its parameters; any that `Recorder` takes.
        objective: the inner loss; its per-sample loss and regulariser are used, its divisor is not.
        clean: samples that the weights must do well on: a `Batch` of clean ones, or `Balanced` samples.
        clean_size: so many of the clean samples, drawn at each step; None: all of them. (`Balanced` has its own.)
        risk: of the clean samples; default their mean loss.
        seed: of the drawing of clean samples, and of the order of the batches in `fit`.

    Raises:
        TypeError: an argument of another kind, an optimizer without a derivative.
        ValueError: `clean` is empty, or `clean_size` is out of range; the optimizer moves nothing of `model`.
        NotImplementedError: a `model` or an `objective` of several processes.
    """

    part = "online"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        objective: WeightedLoss,
        clean: Batch | Balanced,
        *,
        clean_size: int | None = None,
        risk: Risk = _MEAN,
        seed: int = 0,
    ) -> None:
        super().__init__(model, optimizer, objective, risk, seed)
        self.clean = CleanSamples(clean, clean_size, self.seed)
        check_no_graph("clean", self.clean.samples)
        self.visits = Visits()
        self.epochs = 0
        self._epoch: dict[str, float] = {}
        self._clean_loss = math.nan
        self._losses: Tensor | None = None
        self._made_for = (model, optimizer)

    def weights(self, batch: Batch) -> Float[Tensor, " batch"]:
        """Return the weights ``(batch,)`` of the next step, where the model and the optimizer stand now.

        They are counted in `result`. Neither the model nor the optimizer is changed.

        Raises:
            ValueError: `batch` is empty; `model` or `optimizer` was replaced after the method was made.
            FloatingPointError: the risk of the clean samples, or a weight, is NaN or infinite.
        """
        found = self._weighed(batch)
        self._losses = None
        return found

    def _weighed(self, batch: Batch) -> Float[Tensor, " batch"]:
        """Return what `weights` does; the graph of the batch's losses stays, where `_weigh` has kept it."""
        _check.instance("batch", batch, Batch, "a Batch: Batch(inputs, targets, index), with the samples' ids")
        if not len(batch):
            raise ValueError("batch is empty; leave it out")
        for what, one, now in zip(("model", "optimizer"), self._made_for, (self.model, self.optimizer), strict=True):
            if now is not one:
                raise ValueError(
                    f"{what} is another one than this {type(self).__name__} was made for, whose steps it looks ahead "
                    "to: make a new one and give it the old one's state_dict() by load_state_dict"
                )
        clean = self.clean.draw()
        risk = OuterRisk(self.risk, clean, self.objective.loss, forward=self.objective.outputs_of)

        def outer(model: nn.Module) -> Tensor:
            value = risk(model)
            self._clean_loss = float(value.detach())
            return value

        try:
            found = self._weigh(batch, outer).detach()
            if not bool(torch.isfinite(found).all()):
                raise FloatingPointError(f"the weight of {some_ids(batch.index[~torch.isfinite(found)])} is not finite")
        except FloatingPointError as error:
            raise FloatingPointError(f"step {self.steps}: {error}; {blamed(batch, clean)}") from error
        self.visits.add(batch.index, found)
        return found

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Return sum w_i l_i / b with a graph to the model: instead of the loss of a training loop.

        It raises what `weights` raises.
        """
        return self._loss_of(batch, self._weighed(batch))

    def step(self, batch: Batch) -> OnlineStep:
        """Take one training step: weigh the batch, and step with the weighted loss.

        Where all weights are 0 no step is taken.

        Raises:
            FloatingPointError: the weighted loss is NaN or infinite; beside that, what `weights` raises.
            NotImplementedError: an optimizer whose step needs a closure.
        """
        self._refuse_closure()
        weight = self._weighed(batch)
        value = 0.0
        if bool(weight.any()):
            self.optimizer.zero_grad()
            loss = self._loss_of(batch, weight)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise FloatingPointError(f"step {self.steps}: the weighted loss is {value}; lower the learning rate")
            loss.backward()
            self.optimizer.step()
        self._losses = None
        self.steps += 1
        return OnlineStep(self.steps - 1, value, self._clean_loss, weight, batch.index)

    def fit(
        self,
        train: Batch,
        *,
        epochs: int,
        batch_size: int,
        callbacks: Iterable[Callable[[OnlineStep], bool | None]] = (),
        journal: Journal | None = None,
        carry: Mapping[str, Stateful] | None = None,
    ) -> Reweighting:
        """Train the model on `train` in shuffled minibatches, in training mode. Called again, it trains on.

        Args:
            train: ``n`` samples with distinct ids, a `Streamed` too.
            epochs: passes over them.
            batch_size: the last batch of an epoch may be smaller.
            callbacks: called with an `OnlineStep` after each step; True stops the training.
            journal: where checkpoints are written; if it has one of this training, the training resumes from it, bit
                for bit.
            carry: what else, of the callbacks (a scheduler, say), is kept with a checkpoint.

        Returns:
            What `result` gives, for all of `train`; samples that were never seen have weight and probability 1. The
            history has one row an epoch: epoch, loss and clean_loss (means over its steps), kept (share of positive
            weights) and skipped (steps that were not taken, as all weights were 0).

        Raises:
            CheckpointError: the journal has a training of other settings or samples; beside that, what `step` raises.
        """
        check_train(train)
        epochs, batch_size = _check.integer("epochs", epochs, low=1), _check.integer("batch_size", batch_size, low=1)
        per_epoch = -(-len(train) // batch_size)
        self._carry_out(
            train,
            epochs,
            batch_size,
            callbacks,
            journal,
            carry,
            lambda done, left: self._batches(train, batch_size, done % per_epoch, left),
            self.step,
        )
        return self.result(train.index)

    def result(self, index: Int[Tensor, " n"] | None = None) -> Reweighting:
        """Return what the weights of each sample have been so far.

        Args:
            index: ``(n,)`` ids of the samples asked for; those never seen have weight and probability 1. None: all
                that were seen, sorted.

        Returns:
            ``probabilities``, the share of a sample's visits in which its weight was positive, and ``weights``, its
            mean weight over those visits. So ``expected_weights``, their product, is the running mean of its weights.
            (`LearningToReweight` has another ``weights``, and says why.)
        """
        found, shares, means = self.visits.of(index)
        return Reweighting(self._of_visits(means), shares, [dict(row) for row in self.history], found)

    def state_dict(self) -> dict[str, Any]:
        """Return what the method has beside the model and the optimizer: tensors, numbers, lists and dicts only."""
        return {
            "visits": self.visits.state_dict(),
            "clean": self.clean.state_dict(),
            "steps": self.steps,
            "epochs": self.epochs,
            "history": [dict(row) for row in self.history],
            "epoch": dict(self._epoch),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.visits.load_state_dict(state["visits"])
        self.clean.load_state_dict(state["clean"])
        self.steps, self.epochs = state["steps"], state["epochs"]
        self.history = [dict(row) for row in state["history"]]
        self._epoch = dict(state["epoch"])

    def _loss_of(self, batch: Batch, weight: Tensor) -> Tensor:
        """Return sum w_i l_i / b with a graph to the model, of losses that `_weigh` has kept, or of a forward pass."""
        losses, self._losses = self._losses, None
        if losses is None or not torch.is_grad_enabled():
            return self.objective(self.model, batch, weight)
        return self.objective.reduce(self.model, losses, weight)

    @abstractmethod
    def _weigh(self, batch: Batch, outer: Outer) -> Tensor:
        """Return the weights ``(batch,)`` >= 0 of the next step; `outer` is evaluated on the way.

        Where the losses of `batch` are at hand, such as another forward pass would give them, they go to `_losses`.
        """

    def _of_visits(self, means: Tensor) -> Tensor:
        """Return the weights ``(n,)`` of the result from the mean weights over visits in which they were positive."""
        return means

    def _settings(self) -> dict[str, Any]:
        """Return the settings of the method that a journal knows a training by."""
        return {"risk": self.risk, "seed": self.seed, "clean_size": self.clean.size, "objective": self.objective}

    def _begin(self) -> None:
        self.model.train()

    @property
    def _clean_samples(self) -> Batch:
        return self.clean.samples

    def _batches(self, train: Batch, size: int, first: int, count: int) -> Iterator[Batch]:
        """Yield `count` batches from number `first` of the present epoch on."""
        order = shuffled(len(train), size, self.seed, self.epochs, first)
        yield from taken(train, (next(order) for _ in range(count)), self.seed, self.steps)

    def _note(self, seen: OnlineStep, ends: bool) -> None:
        """Count a step of `fit` in the row of its epoch; file that row where the epoch `ends`."""
        kept = float((seen.weights > 0).double().mean())
        values = {"loss": seen.loss, "clean_loss": seen.clean_loss, "kept": kept, "skipped": float(not kept)}
        row = self._epoch
        for name, value in {"steps": 1, **values}.items():
            row[name] = row.get(name, 0) + value
        if not ends:
            return
        steps = row.pop("steps")
        means = {name: row[name] / steps for name in ("loss", "clean_loss", "kept")}
        self.history.append({"epoch": self.epochs, **means, "skipped": int(row["skipped"])})
        if row["skipped"] == steps:
            warnings.warn(
                f"no step of epoch {self.epochs} was taken: the weights of all its samples were 0, as moving by any of "
                "them would raise the clean loss; look at the labels of the clean samples",
                UserWarning,
                stacklevel=3,
            )
        self.epochs, self._epoch = self.epochs + 1, {}
