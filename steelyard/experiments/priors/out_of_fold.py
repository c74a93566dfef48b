"""What models that never saw a sample say of its label: probabilities, margins, movement, disagreement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from steelyard import selectors
from steelyard._support import _check
from steelyard.bilevel.batch import Batch
from steelyard.experiments.priors._term import CHUNK, read
from steelyard.experiments.training.problem import Problem
from steelyard.experiments.training.seeds import derived, generator
from steelyard.experiments.training.trainer import OptimizerSettings, Training, train

__all__ = ["FOLD", "OutOfFold", "OutOfFoldSettings", "dealt", "out_of_fold", "plain_training"]

FOLD = 1  # a place in `seeds.derived`


def plain_training() -> Training:
    """Return the training of a table's model: Adam at 1e-3, batches of 256."""
    return Training(steps=300, batch_size=256, optimizer=OptimizerSettings("adam", 1e-3))


@dataclass(frozen=True)
class OutOfFoldSettings:
    """How samples are judged by models that were not trained on them.

    Attributes:
        folds: the samples are dealt into so many folds, stratified by class; a model is trained for each, without it.
        repeats: times that this is done, each with folds and initial parameters of its own.
        readings: of the held-out margins over a training, at equal distances, the last at its end.
        decay: of the moving average of the weights that `lhd` compares with.
        training: of each model; a batch size above the fold's rows takes all of them.
    """

    folds: int = 5
    repeats: int = 2
    readings: int = 10
    decay: float = 0.9
    training: Training = field(default_factory=plain_training)

    def __post_init__(self) -> None:
        _check.integer("folds", self.folds, low=2)
        _check.integer("repeats", self.repeats, low=2)
        _check.integer("readings", self.readings, low=1)
        _check.in_range("decay", self.decay, low=0.0, high=1.0, open_high=True)

    @property
    def models(self) -> int:
        """The number of models that are trained."""
        return self.folds * self.repeats


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """What is known of every sample from models that were not trained on it.

    Attributes:
        probabilities: ``(n, classes)``, the mean over repeats.
        confidence: ``(n,)`` the probability of the given label. Low = suspect.
        aum: ``(n,)`` the margin of the given label, averaged over the training and the repeats. Low = suspect.
        lhd: ``(n,)`` ||lh||, how far the model is from the moving average of its weights. High = suspect here, where
            the sample is held out: the loss of a wrong label still moves. (Of samples that are trained on, low is.)
        disagreement: ``(n,)`` how differently the repeats rank the sample's loss. Low = suspect.
        others: ``(m, classes)`` the mean probabilities of the samples that no model was trained on, if there are some.
    """

    probabilities: Float[Tensor, "n classes"]
    confidence: Float[Tensor, " n"]
    aum: Float[Tensor, " n"]
    lhd: Float[Tensor, " n"]
    disagreement: Float[Tensor, " n"]
    others: Float[Tensor, "m classes"] | None = None


def out_of_fold(
    problem: Problem,
    settings: OutOfFoldSettings,
    trained: Callable[[int], None] = lambda models: None,
    others: Batch | None = None,
) -> OutOfFold:
    """Judge every training sample of `problem` by models that were trained on the others.

    Each model is a stage of the problem's journal.

    Args:
        problem: the samples, the model, the seed.
        settings: see `OutOfFoldSettings`.
        trained: called after each model, with the number of those trained.
        others: more samples, which no model is trained on and every one judges.

    Raises:
        ValueError: a class has fewer samples than there are folds; its name is in the message.
        FloatingPointError: see `Learner.step`.
    """
    data = problem.splits.train
    _check_classes(problem, settings.folds)
    classes = len(problem.splits.classes)
    logits = torch.zeros(settings.repeats, settings.readings, len(data), classes)
    lhd = torch.zeros(settings.repeats, len(data))
    beside: list[Tensor] = []
    for repeat in range(settings.repeats):
        fold = dealt(data.targets.cpu(), settings.folds, generator(problem.seed, FOLD, repeat))
        for number in range(settings.folds):
            held = torch.nonzero(fold == number).flatten()
            judge = _Judge(data.take(held), settings, others)
            _train_without(problem, torch.nonzero(fold != number).flatten(), settings, judge, repeat, number)
            logits[repeat, :, held] = judge.logits.float()
            lhd[repeat, held] = judge.lhd.float()
            if judge.others is not None:
                beside.append(judge.others.double().softmax(1))
            trained(repeat * settings.folds + number + 1)
    found = _summed_up(logits, lhd, data.targets.cpu())
    return replace(found, others=torch.stack(beside).mean(0).float()) if beside else found


def _summed_up(logits: Float[Tensor, "r k n c"], lhd: Float[Tensor, "r n"], targets: Int[Tensor, " n"]) -> OutOfFold:
    last = logits[:, -1]
    losses = nn.functional.cross_entropy(last.flatten(0, 1), targets.repeat(len(last)), reduction="none").view(
        len(last), -1
    )
    probabilities = last.double().softmax(2).mean(0)
    return OutOfFold(
        probabilities.float(),
        probabilities.gather(1, targets[:, None])[:, 0].float(),
        selectors.aum(logits.flatten(0, 1), targets),
        lhd.mean(0),
        selectors.rank_disagreement(losses).float(),
    )


class _Judge:
    """Reads the held-out samples while a model is trained without them; carried by its stage.

    Attributes:
        logits: ``(readings, held, classes)``.
        lhd: ``(held,)`` at the end.
        others: ``(m, classes)`` logits at the end, of the samples beside; None where there are none.
    """

    def __init__(self, held: Batch, settings: OutOfFoldSettings, others: Batch | None) -> None:
        self._held, self._settings, self._others = held, settings, others
        self.others: Tensor | None = None
        self._average: AveragedModel | None = None
        self._read: list[Tensor] = []
        self._state: dict[str, Any] | None = None
        self.lhd = torch.zeros(0)

    @property
    def logits(self) -> Float[Tensor, "readings held classes"]:
        return torch.stack(self._read)

    def __call__(self, step: int, model: nn.Module, extra: Mapping[str, float]) -> None:
        """Note what the model after `step` steps says."""
        if self._average is None:
            self._average = selectors.ema(model, self._settings.decay, bias_corrected=True)
            if self._state is not None:  # of a training that is resumed
                self._average.load_state_dict(self._state)
        self._average.update_parameters(model)
        steps, readings = self._settings.training.steps, self._settings.readings
        while len(self._read) < readings and step * readings >= steps * (len(self._read) + 1):
            self._read.append(torch.cat([read(model, part)[0].cpu() for part in self._parts()]))
        if step == steps:
            average = self._average.module
            self.lhd = torch.cat([_movement(model, average, part).cpu() for part in self._parts()])
            if self._others is not None:
                self.others = torch.cat([read(model, part)[0].cpu() for part in self._others.chunks(CHUNK)])
            self._average = None  # not wanted any more

    def _parts(self) -> Iterator[Batch]:
        return self._held.chunks(CHUNK)

    def state_dict(self) -> dict[str, Any]:
        """Return what was read, and the average of the weights."""
        average = None if self._average is None else self._average.state_dict()
        return {"read": list(self._read), "lhd": self.lhd, "average": average, "others": self.others}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._read, self.lhd = list(state["read"]), state["lhd"]
        self._state, self.others = state["average"], state["others"]


def _movement(model: nn.Module, average: nn.Module, part: Batch) -> Float[Tensor, " b"]:
    (main, hidden), (other, other_hidden) = read(model, part), read(average, part)
    difference = selectors.state_difference(main, other, hidden, other_hidden, labels=part.targets)
    return torch.linalg.vector_norm(difference, dim=1)


def _train_without(
    problem: Problem, rows: Int[Tensor, " k"], settings: OutOfFoldSettings, judge: _Judge, repeat: int, fold: int
) -> None:
    own = replace(problem, seed=derived(problem.seed, FOLD, repeat, fold))
    training = replace(settings.training, evaluate_every=1)
    train(own, training, judge, data=problem.splits.train.take(rows), carry={"judge": judge})


def dealt(targets: Int[Tensor, " n"], folds: int, draws: torch.Generator) -> Int[Tensor, " n"]:
    """Return the fold of each sample ``(n,)``, every class spread evenly over the folds."""
    shuffled = torch.randperm(len(targets), generator=draws)
    order = shuffled[torch.argsort(targets[shuffled], stable=True)]
    fold = torch.empty_like(targets)
    fold[order] = torch.arange(len(targets)) % folds
    return fold


def _check_classes(problem: Problem, folds: int) -> None:
    counts = torch.bincount(problem.splits.train.targets, minlength=len(problem.splits.classes)).tolist()
    for name, count in zip(problem.splits.classes, counts, strict=True):
        if count < folds:
            raise ValueError(
                f"the class {name!r} has {count} training sample{'s' * (count != 1)}, and each of {folds} folds needs "
                "one: add some, or leave the class out"
            )
