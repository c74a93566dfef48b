"""The inner run: ordinary training on the samples that were kept, its last steps recorded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import tee
from typing import Any, Literal, NamedTuple

import numpy
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from steelyard._support import _check
from steelyard._support._agreement import optimizer_settings, sample_kinds
from steelyard._support._check import Numbers
from steelyard._support._precision import measured
from steelyard._support._random import seeded
from steelyard.bilevel import Batch, Recorder, Storage, Streamed, Trajectory, WeightedLoss
from steelyard.distributed import Ranks
from steelyard.reweight.identity import described, settings

__all__ = ["Begun", "InnerRun"]

_WHOLE = Storage()


class Begun(NamedTuple):
    """A call of an `InnerRun` before its first step.

    Attributes:
        model: at the parameters where it starts, in training mode.
        optimizer: of its parameters.
        batches: for every step the batch and its weights, without end.
        seed: of the batch order and the noise.
    """

    model: nn.Module
    optimizer: Optimizer
    batches: Iterator[tuple[Batch, Tensor]]
    seed: int


class InnerRun:
    """Train a model on weighted samples and record the end: ``inner(train, weight) -> (model, trajectory)``.

    With ``restart=True`` (the paper, Algorithm 1, line 4) every call starts from the same parameters, batch order
    and dropout noise, those of `seed`: the call is a function of (train, weight) alone. The global random state is
    forked, so it is afterwards what it was before. The model is built once and its parameters are overwritten by
    the next call; a trajectory is good until then (using a stale one is an error of the estimators).

    Where `objective` has ``ranks=Processes()`` every rank calls with its share of the samples, and the model is trained
    under DistributedDataParallel on the batches that one process would draw from all of them (each rank has what of
    a batch is its own, which may be nothing; dropout draws other noise on every rank).

    Args:
        model: makes the module, on the device of the data; called once (once a fold by `CrossFit`, and
            once more by `Maple` to try a validation set of another kind).
        optimizer: makes a supported `torch.optim` optimizer from the parameters; called for every (re)start.
        objective: the inner loss.
        steps: optimizer steps a call.
        batch_size: of the minibatches, drawn by shuffling the kept samples every epoch (the last batch of an epoch
            may be smaller); None: all kept samples in every step.
        restart: False for a warm start: a call goes on from the parameters, optimizer state and noise where the
            last one ended; cheaper, but then theta depends on the history of the outer run.
        autocast: None or `torch.bfloat16` (float16 would need a gradient scaler, which is not recorded); "auto":
            bfloat16 where the device (on several ranks, each) multiplies faster in it, see `settle`.
        seed: of the initial parameters, the batch order and the noise of the forward passes.
        window: how many last steps are recorded: T of `Truncated(steps=T)`.
        storage: how they are kept, see `Storage`.
        schedule: factor of the learning rates as a function of progress, 0 at a call's first step and below 1 at its
            last, `CosineDecay` say; None: constant. Minibatches of a constant step leave the model that is
            differentiated, and the sign of an outer risk near its minimum, to the last few of them.

    Raises (at the call):
        ValueError: weights that are negative, not finite, not aligned with `train`, or zero everywhere.
        RankError: another rank failed or is gone, or was given other settings or samples of other types.

    Example:
        >>> from functools import partial
        >>> import torch.nn.functional as F
        >>> objective = WeightedLoss(partial(F.cross_entropy, reduction="none"))
        >>> inner = InnerRun(lambda: nn.Linear(3, 2), partial(torch.optim.SGD, lr=0.1), objective, steps=5)
        >>> data = Batch.of(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))
        >>> model, trajectory = inner(data, torch.tensor([1.0, 0.0, 2.0, 1.0]))
        >>> trajectory.index.tolist()
        [0, 2, 3]
    """

    def __init__(
        self,
        model: Callable[[], nn.Module],
        optimizer: Callable[[Iterable[Parameter]], Optimizer],
        objective: WeightedLoss,
        steps: int,
        batch_size: int | None = None,
        restart: bool = True,
        autocast: torch.dtype | Literal["auto"] | None = None,
        seed: int = 0,
        window: int = 1,
        storage: Storage = _WHOLE,
        schedule: Callable[[float], float] | None = None,
    ) -> None:
        if isinstance(model, nn.Module):  # which can be called, too
            raise TypeError("model must be a function that makes the module, got a module: give lambda: MyNet(...)")
        _check.function("model", model, "a function that makes the module")
        _check.function("optimizer", optimizer, "a function that makes an optimizer of parameters")
        if schedule is not None:
            _check.function("schedule", schedule, "a function of progress in [0, 1]")
        self.objective = _check.instance("objective", objective, WeightedLoss, "a WeightedLoss")
        self.steps = _check.integer("steps", steps, low=1)
        self.batch_size = None if batch_size is None else _check.integer("batch_size", batch_size, low=1)
        self.restart = _check.boolean("restart", restart)
        choices: list[torch.dtype | Literal["auto"] | None] = [None, torch.bfloat16, "auto"]
        self.autocast: torch.dtype | Literal["auto"] | None = _check.choice("autocast", autocast, choices)
        self.seed = _check.seed("seed", seed)
        self.window = _check.integer("window", window, low=1, high=steps)
        self.storage = _check.instance("storage", storage, Storage, "a Storage")
        self.schedule = schedule
        self._make_model, self._make_optimizer = model, optimizer
        self._model: nn.Module | None = None
        self._initial: dict[str, Tensor] = {}
        self._optimizer: Optimizer | None = None
        self._rates: list[float] = []
        self._runs = 0
        self._twin_of: InnerRun | None = None
        self._restored: dict[str, Any] | None = None

    @property
    def ranks(self) -> Ranks:
        """The processes that train together: those of the objective."""
        return self.objective.ranks

    def settle(self, device: torch.device) -> torch.dtype | None:
        """Return what the forward passes are cast to; ``autocast="auto"`` is replaced by that, once and for all.

        One product of matrices is measured in both precisions, once a process; bfloat16 has to save a tenth. On several
        ranks all call this together, and all get the same.

        Args:
            device: of the samples.
        """
        if isinstance(self.autocast, str):
            slower = self.ranks.any(not measured(str(device)).faster)
            self.autocast = None if slower else torch.bfloat16
        return self.autocast

    def __call__(
        self,
        train: Batch,
        weight: Float[Tensor, " n"] | Numbers,
        after_step: Callable[[int, nn.Module], None] | None = None,
    ) -> tuple[nn.Module, Trajectory]:
        """Run on the samples of `train` with weight > 0.

        Args:
            train: ``n`` samples, on several ranks this one's share. Of a `Streamed`, without a batch size (or with one
                as large as the kept set), the kept samples are in memory as a whole.
            weight: ``(n,)`` >= 0.
            after_step: called after each optimizer step with the number of steps taken, from 1, and the model, which it
                may read and run but not change.

        Returns:
            The model at the final parameters, in training mode, and the record of the last `window` steps.
        """
        begun = self.begin(train, weight)
        device, optimizer = train.device, begun.optimizer
        # In DistributedDataParallel for this run only: it holds the process group, which could not be left otherwise.
        model = self.ranks.wrap(begun.model)
        plain = partial(self.objective, model)
        noise = _noise_seed(begun.seed, self.ranks.rank)
        record = Recorder(model, optimizer, self.objective, self.window, storage=self.storage)
        with self.ranks.listening(), seeded(device, noise), record as recorder:
            for step in range(self.steps):
                self.set_rates(optimizer, step / self.steps)
                loss = recorder.loss if step >= self.steps - self.window else plain
                self._train_step(model, optimizer, loss, *next(begun.batches))
                if after_step is not None:
                    after_step(step + 1, model)
            trajectory = recorder.trajectory()
        return trajectory.module, trajectory

    def begin(self, train: Batch, weight: Float[Tensor, " n"] | Numbers) -> Begun:
        """Return what a call trains, and on what, before its first step; arguments and errors as those of a call."""
        _check.instance("train", train, Batch, "a Batch, as Batch.of(inputs, targets) makes it")
        weight = self.ranks.together(lambda: _weights(train, weight))
        self.settle(train.device)
        model, optimizer = self._start(train.device)
        self._agree(train, weight, optimizer)
        kept = _kept(weight, self.ranks)
        seed = self.seed if self.restart else self.seed + self._runs
        self._runs += 1
        generator = torch.Generator().manual_seed(seed)
        batches = _batches(train, weight, kept, self.batch_size, generator, self.ranks)
        return Begun(model, optimizer, batches, seed)

    def fresh(self, seed: int | None = None) -> InnerRun:
        """Return a run of the same settings (or of another seed) that builds its own model and shares no state."""
        return InnerRun(
            self._make_model,
            self._make_optimizer,
            self.objective,
            self.steps,
            self.batch_size,
            self.restart,
            self.autocast,
            self.seed if seed is None else seed,
            self.window,
            self.storage,
            self.schedule,
        )

    def initial(self, device: torch.device) -> nn.Module:
        """Return a new model at the parameters where the first call starts."""
        with seeded(device, self.seed):
            return self._make_model()

    def prepared(self, device: torch.device) -> nn.Module:
        """Return the model that calls train, in training mode and where the next one starts; it is made once."""
        if self._model is None:
            self._model = self.initial(device)
            self._initial = {name: value.detach().clone() for name, value in _tensors(self._model)}
            if (like := self._twin_of) is not None:
                if like._model is None:
                    like.prepared(device)
                if _shapes(like._initial) == _shapes(self._initial):  # else they differ, as who compares them says
                    self._initial = like._initial
        if self.restart or self._optimizer is None:
            with torch.no_grad():
                for name, value in _tensors(self._model):
                    value.copy_(self._initial[name])
        return self._model.train()

    def twin(self) -> InnerRun:
        """Return a `fresh` run that starts at this one's parameters, even where every model that is made has others."""
        found = self.fresh()
        found._twin_of = self
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return what a warm start goes on from (with ``restart=True`` nothing is needed, and this is empty)."""
        if self._restored is not None:  # and no call has come since
            return copy.deepcopy(self._restored)
        if self.restart or self._model is None or self._optimizer is None:
            return {}
        return {
            "model": {name: value.clone() for name, value in self._model.state_dict().items()},
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
            "runs": self._runs,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state` at the next call; from the start if it is empty, as before the first call."""
        self._restored = state or None
        if not state:
            self._optimizer, self._runs = None, 0

    def _start(self, device: torch.device) -> tuple[nn.Module, Optimizer]:
        model = self.prepared(device)
        if self.restart or self._optimizer is None:
            self._optimizer = self._make_optimizer(model.parameters())
            self._rates = [group["lr"] for group in self._optimizer.param_groups]
        if self._restored is not None:
            model.load_state_dict(self._restored["model"])
            self._optimizer.load_state_dict(copy.deepcopy(self._restored["optimizer"]))
            self._runs, self._restored = self._restored["runs"], None
        return model, self._optimizer

    def _agree(self, train: Batch, weight: Tensor, optimizer: Optimizer) -> None:
        """Raise RankError if the ranks would not take the same steps."""
        if self.ranks.size == 1:
            return
        facts = {name: described(value) for name, value in settings(self).items()}
        facts |= {**optimizer_settings("optimizer", optimizer), **sample_kinds("train", train)}
        facts |= {"train's device": train.device.type, "weight": str(weight.dtype)}
        self.ranks.agree("the inner run", {f"inner.{name}": value for name, value in facts.items()})

    def set_rates(self, optimizer: Optimizer, progress: float) -> None:
        """Set the learning rates by the schedule; the groups are those of the optimizer that this run has made."""
        if self.schedule is not None:
            for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate * self.schedule(progress)

    def _train_step(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss: Callable[[Batch, Tensor], Tensor],
        batch: Batch,
        weight: Tensor,
    ) -> None:
        model.zero_grad()  # of all: what the optimizer does not train would add up
        autocast = self.settle(batch.device)
        with torch.autocast(batch.device.type, dtype=autocast, enabled=autocast is not None):
            value = loss(batch, weight)
        value.backward()
        optimizer.step()


def _kept(weight: Tensor, ranks: Ranks) -> Tensor:
    """Return the positions ``(k,)`` of the samples with weight > 0."""
    positions = (weight > 0).nonzero().flatten()
    if not ranks.any(len(positions) > 0):
        count = ranks.count(len(weight))
        raise ValueError(f"no sample is left to train on: all {count} weights are 0; raise the budget")
    return positions


def _weights(train: Batch, weight: Tensor | Numbers) -> Tensor:
    """Return the weights as a tensor ``(n,)``; TypeError or ValueError where they are none of the samples."""
    found = _check.floats("weight", weight, ("n",))
    _check.same_length(train=train.index, weight=found)
    _check.finite("weight", found)
    if len(found) and float(found.min()) < 0:
        raise ValueError(f"weight must be >= 0, the smallest is {float(found.min())}")
    return found


def _batches(
    train: Batch, weight: Tensor, kept: Tensor, size: int | None, generator: torch.Generator, ranks: Ranks
) -> Iterator[tuple[Batch, Tensor]]:
    """Yield batches of the kept samples and their weights, without end.

    They are gathered once where every batch has all of them, else batch by batch: runs that are trained as one would
    hold a copy each. On several ranks a batch is of all that they keep, and each yields the part that is its own.
    """
    start, total = ranks.place(len(kept))
    size = total if size is None else size
    whole = size >= total
    if not whole and isinstance(train, Streamed):
        ahead, now = tee(kept[rows] for rows in _shuffled(total, size, generator, start, len(kept), kept.device))
        for batch, rows in zip(train.stream(ahead), now, strict=True):
            yield batch, weight[rows]
    if whole and (len(kept) < len(weight) or isinstance(train, Streamed)):
        train, weight = train.take(kept), weight[kept]
    while whole:
        yield train, weight
    for rows in _shuffled(total, size, generator, start, len(kept), weight.device):
        yield train.take(kept[rows]), weight[kept[rows]]


def _shuffled(
    total: int, size: int, generator: torch.Generator, start: int, own: int, device: torch.device
) -> Iterator[Tensor]:
    """Yield the positions of batch after batch, of all `total` those from `start` on that are this rank's `own`."""
    while True:
        for rows in torch.randperm(total, generator=generator).split(size):
            mine = rows if own == total else rows[(rows >= start) & (rows < start + own)] - start
            yield mine.to(device)


def _noise_seed(seed: int, rank: int) -> int:
    """Return the seed of the noise of forward passes: on each rank another, on the first that of one process."""
    return int(numpy.random.SeedSequence((seed, rank)).generate_state(1)[0]) if rank else seed


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors.items()}
