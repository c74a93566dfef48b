"""The loop: pick, ask the oracle, train, measure; once more."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from steelyard._support import _check
from steelyard.bilevel.batch import Batch
from steelyard.checkpoint import Journal
from steelyard.experiments.active.choosing import Selector
from steelyard.experiments.active.fitting import Fit, Learned
from steelyard.experiments.active.view import View
from steelyard.experiments.training.seeds import derived, generator

__all__ = ["Measure", "Past", "Pool", "Round", "Schedule", "active_learning"]

_PICK, _TRAIN, _PASSES = range(3)  # what a round's seeds are for

Measure = Callable[[Learned], Mapping[str, float]]
"""Figures of what a round has learned; they are recorded and decide nothing."""


@dataclass(frozen=True)
class Pool:
    """Everything that may be labelled.

    Attributes:
        data: the samples with the labels that the oracle gives when asked; ids are 0 .. n - 1.
        noisy: ``(n,)`` which of them have random labels. Only the figures read it.
        classes: how many there are.
    """

    data: Batch
    noisy: Bool[Tensor, " n"]
    classes: int

    def __post_init__(self) -> None:
        _check.same_length(data=self.data.targets, noisy=self.noisy)


@dataclass(frozen=True)
class Schedule:
    """How many samples are labelled when.

    Attributes:
        initial: drawn at random before the first training.
        per_round: picked by the selector before each further training.
        rounds: how often; there is one training more than rounds.
    """

    initial: int = 2000
    per_round: int = 1000
    rounds: int = 10

    def __post_init__(self) -> None:
        _check.integer("initial", self.initial, low=1)
        _check.integer("per_round", self.per_round, low=1)
        _check.integer("rounds", self.rounds, low=1)

    @property
    def total(self) -> int:
        """How many samples are labelled in the end."""
        return self.initial + self.rounds * self.per_round


@dataclass(frozen=True)
class Round:
    """A round that is done.

    Attributes:
        number: 0 for the training on the initial samples.
        picked: ``(k,)`` ids labelled for it, in the order picked.
        learned: the models after it.
        metrics: labelled (so many so far), clean_share and class_balance (of `picked`), clean_share_selected (of all
            that was picked by the selector so far, NaN before that), the training's facts, `measure`'s figures, and
            seconds_select and seconds_train.
    """

    number: int
    picked: Int[Tensor, " k"]
    learned: Learned
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Past:
    """What a loop goes on from: the ids picked in each round so far, and what the last of them learned."""

    picked: Sequence[Int[Tensor, " _"]]
    learned: Learned


def active_learning(
    pool: Pool,
    schedule: Schedule,
    fit: Fit,
    select: Selector,
    seed: int,
    *,
    measure: Measure = lambda learned: {},
    past: Past | None = None,
    journal: Callable[[int], Journal] = lambda number: Journal(),
) -> Iterator[Round]:
    """Yield round after round.

    What is random in a round depends on `seed` and its number alone: a loop that goes on from a `Past` yields what the
    uninterrupted one would have, and two selectors share their first round.

    Args:
        pool: the samples and the oracle. schedule: how many are labelled when.
        fit: how a round trains. select: who picks.
        seed: of everything random.
        measure: called after each training.
        past: the rounds that are done already (default: none).
        journal: number of a round -> its journal, to resume a training that was cut short (default: none is kept).

    Raises:
        ValueError: the pool is smaller than what the schedule labels, or a selector returned something other than
            different candidates.
        Stopped: a journal was asked to stop; the epoch is saved.

    Example:
        >>> from steelyard.experiments.active import SELECTORS, Epochs, Fitting
        >>> inputs = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
        >>> data = Batch.of(inputs, (inputs[:, 0] > 0).long())
        >>> pool = Pool(data, torch.zeros(40, dtype=torch.bool), classes=2)
        >>> def net(seed):
        ...     return torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> fit = Fitting(net, Epochs(epochs=5))
        >>> rounds = active_learning(pool, Schedule(10, 5, 2), fit, SELECTORS["badge"], seed=0)
        >>> [int(done.metrics["labelled"]) for done in rounds]
        [10, 15, 20]
    """
    if schedule.total > len(pool.data):
        raise ValueError(
            f"the schedule labels {schedule.total} samples, the pool has {len(pool.data)}: lower initial, per_round "
            "or rounds"
        )
    picked = list(past.picked) if past is not None else []
    learned = past.learned if past is not None else None
    for number in range(len(picked), schedule.rounds + 1):
        began = time.perf_counter()
        picked.append(_pick(pool, schedule, select, seed, number, picked, learned))
        chosen = time.perf_counter()
        labelled, rest = _parts(pool, picked)
        learned = fit(labelled, rest.inputs, learned, derived(seed, number, _TRAIN), journal(number))
        trained = time.perf_counter()
        metrics = {
            **_facts(pool, picked),
            **learned.facts,
            **measure(learned),
            "seconds_select": chosen - began,
            "seconds_train": trained - chosen,
        }
        yield Round(number, picked[-1], learned, metrics)


def _parts(pool: Pool, picked: Sequence[Tensor]) -> tuple[Batch, Batch]:
    """Return the labelled samples in the order picked, and the others by id."""
    ids = torch.cat(list(picked))
    open_ = torch.ones(len(pool.data), dtype=torch.bool, device=ids.device)
    open_[ids] = False
    return pool.data.take(ids), pool.data.take(open_)


def _pick(
    pool: Pool,
    schedule: Schedule,
    select: Selector,
    seed: int,
    number: int,
    picked: Sequence[Tensor],
    learned: Learned | None,
) -> Tensor:
    source, device = generator(seed, number, _PICK), pool.data.index.device
    if number == 0 or learned is None:
        return torch.randperm(len(pool.data), generator=source)[: schedule.initial].to(device)
    labelled, rest = _parts(pool, picked)
    view = View(learned, rest.inputs, labelled, derived(seed, number, _PASSES))
    positions = select(view, schedule.per_round, source).to(device)
    if positions.shape != (schedule.per_round,) or len(positions.unique()) != schedule.per_round:
        raise ValueError(
            f"the selector must return {schedule.per_round} different candidates, got shape {tuple(positions.shape)} "
            f"with {len(positions.unique())} different ones"
        )
    return rest.index[positions]


def _facts(pool: Pool, picked: Sequence[Tensor]) -> dict[str, float]:
    last, selected = picked[-1], torch.cat([picked[0][:0], *picked[1:]])
    clean = ~pool.noisy.to(last.device)
    return {
        "labelled": float(sum(len(ids) for ids in picked)),
        "clean_share": float(clean[last].double().mean()),
        "clean_share_selected": float(clean[selected].double().mean()),  # of nothing: NaN
        "class_balance": _balance(pool.data.targets[last], pool.classes),
    }


def _balance(targets: Tensor, classes: int) -> float:
    """Return the entropy of the classes' shares over its largest value: 1 where all are equal, 0 for one class."""
    shares = torch.bincount(targets, minlength=classes).double() / len(targets)
    return float(torch.special.entr(shares).sum()) / math.log(classes)
