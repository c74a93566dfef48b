"""What `Online` and `SingleLoop` share: checks, the loop of `fit` over a journal's stage, what a journal knows."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from torch import nn
from torch.optim import Optimizer

from steelyard._support import _check
from steelyard._support._agreement import optimizer_settings
from steelyard._support._modules import parameters_of
from steelyard.bilevel import Batch, WeightedLoss
from steelyard.bilevel.trained_module import averaged_over
from steelyard.checkpoint import Journal, Stateful
from steelyard.reweight.admission import check_no_graph
from steelyard.reweight.identity import described, samples
from steelyard.reweight.minibatches import divided_by_rows
from steelyard.reweight.risk import Risk

__all__ = ["MinibatchMethod", "check_train"]

Batches = TypeVar("Batches")
Seen = TypeVar("Seen")


class MinibatchMethod(ABC):
    """A method that trains a model in minibatches of training samples and of clean ones, in one process.

    Attributes:
        part: what its own state is called in a checkpoint.
    """

    part: ClassVar[str]

    def __init__(self, model: nn.Module, optimizer: Optimizer, objective: WeightedLoss, risk: Risk, seed: int) -> None:
        self.model = _check.instance("model", model, nn.Module, "a module (its parameters are what optimizer trains)")
        self.optimizer = _check.instance("optimizer", optimizer, Optimizer, "a torch.optim optimizer")
        own, moved = {id(p) for p in model.parameters()}, [p for p in parameters_of(optimizer) if p.requires_grad]
        if moved and not any(id(p) in own for p in moved):
            raise ValueError(
                "optimizer moves no parameter of model: make it of model.parameters(), after any copy of the model"
            )
        _check.instance("objective", objective, WeightedLoss, "a WeightedLoss, such as WeightedLoss(loss)")
        several = {"objective.ranks are": objective.ranks.size, "model averages gradients over": averaged_over(model)}
        for what, ranks in several.items():
            if ranks > 1:
                raise NotImplementedError(
                    f"{type(self).__name__} trains in one process, and {what} {ranks}: leave out ranks and "
                    "DistributedDataParallel, or learn the weights with Maple, which trains in several"
                )
        self.objective = divided_by_rows(objective)
        self.risk = _check.instance("risk", risk, Risk, "a Risk, such as VREx()")
        self.seed = _check.seed("seed", seed)
        self.steps = 0
        self.history: list[dict[str, Any]] = []

    @property
    @abstractmethod
    def _clean_samples(self) -> Batch:
        """The clean samples."""

    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """Return the settings of the method that a journal knows a run by."""

    @abstractmethod
    def _note(self, seen: Any, ends: bool) -> None:
        """Count a step of `fit` in the row of its epoch; file that row where the epoch `ends`."""

    def _refuse_closure(self) -> None:
        """Raise NotImplementedError where a step of the optimizer needs a closure."""
        kind = type(self.optimizer)
        if _needs_closure(kind.step):
            raise NotImplementedError(f"optimizer: {kind.__name__} steps by a closure; take SGD or Adam")

    def _begin(self) -> None:  # noqa: B027 (most need nothing)
        """Prepare the model for the steps of `fit`, whose arguments are in order."""

    def _carry_out(
        self,
        train: Batch,
        epochs: int,
        batch_size: int,
        callbacks: Iterable[Callable[[Seen], bool | None]],
        journal: Journal | None,
        carry: Mapping[str, Stateful] | None,
        batches: Callable[[int, int], Iterator[Batches]],
        step: Callable[[Batches], Seen],
    ) -> None:
        """Take the steps of `fit`, a checkpoint at each that the journal asks for.

        Args:
            train: the samples, for the number of steps and for the journal.
            epochs, batch_size, callbacks, journal, carry: those of `fit`.
            batches: (steps taken, steps left) -> what the steps left take.
            step: takes one step.
        """
        _check.instance("journal", journal, (Journal, type(None)), 'a Journal, such as Journal("run.safetensors")')
        journal = Journal() if journal is None else journal
        identity = {} if journal.path is None else self._identity(train, epochs, batch_size)
        callbacks = _check.callables("callbacks", callbacks)
        parts = {"model": self.model, "optimizer": self.optimizer, self.part: self, **(carry or {})}
        self._begin()
        with journal.stage(identity, **parts) as stage:
            per_epoch = -(-len(train) // batch_size)
            done, total, finished = stage.done, epochs * per_epoch, stage.finished
            following = iter(()) if finished else batches(done, total - done)
            while not finished:
                seen = step(next(following))
                done += 1
                wishes = [callback(seen) for callback in callbacks]  # all of them, also after one says stop
                finished = any(wish is True for wish in wishes) or done == total
                self._note(seen, ends=finished or done % per_epoch == 0)
                stage.step(done, last=finished)

    def _identity(self, train: Batch, epochs: int, batch_size: int) -> dict[str, str]:
        own = {"method": type(self).__name__, "epochs": epochs, "batch_size": batch_size, **self._settings()}
        found = {name: described(value) for name, value in own.items()}
        found |= {name: str(value) for name, value in optimizer_settings("optimizer", self.optimizer).items()}
        return found | samples("train", train) | samples("clean", self._clean_samples)


@functools.cache
def _needs_closure(step: Callable[..., Any]) -> bool:
    """Whether this step of an optimizer needs a closure."""
    closure = inspect.signature(step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def check_train(train: Batch) -> None:
    """Raise unless `train` is a batch of samples with distinct ids, at least one, which carry no graph."""
    _check.instance("train", train, Batch, "a Batch, as Batch.of(inputs, targets) makes it")
    check_no_graph("train", train)
    if not len(train) or (ids := _check.distinct(train.index)) != len(train):
        raise ValueError(f"train must hold distinct samples, got {len(train)} with {0 if not len(train) else ids} ids")
