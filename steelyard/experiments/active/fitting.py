"""What a round of active learning trains: a model and the moving average of its weights (LHD, Algorithm 1)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from steelyard import selectors
from steelyard._support import _check
from steelyard.bilevel.batch import Batch
from steelyard.checkpoint import Journal
from steelyard.experiments.models import cross_entropy
from steelyard.experiments.training.adversarial import PGD, Adversary
from steelyard.experiments.training.seeds import derived, global_state
from steelyard.experiments.training.trainer import Learner, Perturb, Training

__all__ = ["Epochs", "Fit", "Fitting", "Learned", "first_round_shared", "train_epochs"]


@dataclass(frozen=True)
class Learned:
    """What a round's training ends with.

    Attributes:
        model: the main model.
        average: the moving average of its weights; calling it evaluates the average.
        facts: figures of the training, such as epochs and accuracy on what it was fitted to.
        measured: the models whose accuracy is measured, if they are others than those that select.
    """

    model: nn.Module
    average: AveragedModel
    facts: Mapping[str, float] = field(default_factory=dict)
    measured: Learned | None = None

    def copy(self) -> Learned:
        """Return a deep copy: training it leaves this one as it is."""
        return copy.deepcopy(self)

    @property
    def result(self) -> Learned:
        """The models to measure and to use."""
        return self.measured or self


@runtime_checkable
class Fit(Protocol):
    """How a round trains. Plain training, fine-tuning and adversarial training are all of this form."""

    def __call__(
        self, labelled: Batch, unlabelled: Tensor, start: Learned | None, seed: int, journal: Journal
    ) -> Learned:
        """Return what was learned; must not change `start`.

        Args:
            labelled: the samples labelled so far, in the order they were picked.
            unlabelled: ``(m, ...)`` inputs of the rest of the pool.
            start: the round before, None in the first round.
            seed: of this round's training; nothing else may be random.
            journal: of this round; each training is a stage of it.
        """
        ...


@dataclass(frozen=True)
class Epochs:
    """How long one model is trained, by epochs.

    An epoch is cut into batches of nearly equal size, at most `batch_size`: no sample is left out and no batch is a
    lone remainder, which BatchNorm could not take.

    Attributes:
        epochs: at most.
        batch_size: samples a step, at most.
        learning_rate: of Adam (betas 0.9, 0.999).
        stop_accuracy: training ends with the first epoch whose accuracy is at least this: the share of samples that
            each step's model got right just before the step, dropout included: this costs no second pass. Above 1:
            never.

    References:
        Khosla et al., appendix B, and the stop rule of their code (which goes back to that of BADGE).
    """

    epochs: int = 500
    batch_size: int = 64
    learning_rate: float = 1e-4
    stop_accuracy: float = 0.99

    def __post_init__(self) -> None:
        _check.integer("epochs", self.epochs, low=1)
        _check.integer("batch_size", self.batch_size, low=2)
        _check.in_range("learning_rate", self.learning_rate, low=0.0, open_low=True)
        _check.in_range("stop_accuracy", self.stop_accuracy, low=0.0, open_low=True)


class _Progress:
    """What training by epochs carries from one to the next beside model, average and optimizer."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator, self.accuracy = generator, 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "accuracy": self.accuracy}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.accuracy = float(state["accuracy"])


def train_epochs(
    model: nn.Module,
    average: AveragedModel,
    data: Batch,
    settings: Epochs,
    generator: torch.Generator,
    perturb: Perturb | None = None,
    journal: Journal | None = None,
) -> tuple[int, float]:
    """Train `model` in place on `data`, updating `average` after every step; return epochs and the last accuracy.

    A stage of `journal` whose steps are epochs.

    Args:
        model: returns logits ``(b, classes)``. average: of `selectors.ema`.
        data: at least one sample. settings: how long.
        generator: of the order of the samples, on the CPU.
        perturb: what each step does to its batch first; the accuracy is then that on what it makes.
        journal: what is kept of the training, to resume it (default: nothing).

    Raises:
        Stopped: the journal was asked to stop; the epoch is saved.
    """
    # fused: the update of all tensors in one call, half of a small net's step otherwise
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)
    learner = Learner(model, cross_entropy, Training(), optimizer=optimizer, perturb=perturb)
    decisions: list[Tensor] = []

    def listen(module: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
        if module.training:  # an attack asks the model too, in evaluation mode
            decisions.append(outputs.detach().argmax(1))

    hook = model.register_forward_hook(listen)  # the trainer's step hands back losses alone
    model.train()
    average.train()
    batches = -(-len(data) // settings.batch_size)
    progress = _Progress(generator)
    try:
        with (journal or Journal()).stage(learner=learner, average=average, progress=progress) as stage:
            while not stage.finished:
                decisions.clear()
                order = torch.randperm(len(data), generator=generator).to(data.targets.device)
                for rows in order.tensor_split(batches):
                    learner.step(data.take(rows))
                    average.update_parameters(model)
                progress.accuracy = float((torch.cat(decisions) == data.targets[order]).double().mean())
                epoch = stage.done + 1
                enough = progress.accuracy >= settings.stop_accuracy
                stage.step(epoch, worth=batches, last=enough or epoch == settings.epochs)
    finally:
        hook.remove()
    return stage.done, progress.accuracy


@dataclass(frozen=True)
class Fitting:
    """Algorithm 1's training of a round: the main model on what is labelled, the average beside it.

    Attributes:
        build: seed -> a new model on the device of the data.
        epochs: how long.
        decay: of the average; the decay of step k (from 0) is min(1 - 1 / (k + 1), decay).
        start: whether a round trains a new model or continues with that of the round before.
        attack: against each step's batch: adversarial training; the default, of radius 0, is none.
    """

    build: Callable[[int], nn.Module]
    epochs: Epochs = field(default_factory=Epochs)
    decay: float = 0.999
    start: Literal["scratch", "warm"] = "scratch"
    attack: PGD = field(default_factory=lambda: PGD(epsilon=0.0))

    def __call__(
        self, labelled: Batch, unlabelled: Tensor, start: Learned | None, seed: int, journal: Journal | None = None
    ) -> Learned:
        """Return the trained model and its average; see `Fit`."""
        with global_state(derived(seed, 0), labelled.targets.device):
            if start is not None and self.start == "warm":
                learned = start.copy()
                model, average = learned.model, learned.average
            else:
                model = self.build(derived(seed, 1))
                average = selectors.ema(model, self.decay, bias_corrected=True)
            order = torch.Generator().manual_seed(derived(seed, 2))
            adversary = Adversary(self.attack, cross_entropy, derived(seed, 5)) if self.attack.epsilon else None
            epochs, accuracy = train_epochs(model, average, labelled, self.epochs, order, adversary, journal)
        return Learned(model, average, {"epochs": float(epochs), "fit_accuracy": accuracy})


def first_round_shared(fit: Fit, known: dict[object, Learned], key: object) -> Fit:
    """Return `fit`, its first round taken from `known` where that has `key`, and put there where it does not.

    The first round depends on neither the selector nor anything else that `key` does not name: what is taken is equal
    bit for bit to what `fit` would train.
    """

    def shared(labelled: Batch, unlabelled: Tensor, start: Learned | None, seed: int, journal: Journal) -> Learned:
        if start is not None:
            return fit(labelled, unlabelled, start, seed, journal)
        if key not in known:
            known[key] = fit(labelled, unlabelled, None, seed, journal)
        return known[key].copy()

    return shared
