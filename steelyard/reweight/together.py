"""Inner runs that differ in their samples alone, trained as one: folds, draws of the mask, seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from steelyard._support import _check
from steelyard._support._nested import named_tensors
from steelyard._support._random import seeded
from steelyard.bilevel import Batch, Storage, Streamed, Trajectory, WeightedLoss
from steelyard.bilevel.objective import summed_by_weight
from steelyard.bilevel.optimizers import SUPPORTED
from steelyard.bilevel.stacked import Stacked, stacked_optimizer
from steelyard.bilevel.stacked_check import has_hooks, products_of, stacked_batch, why_not_alike
from steelyard.bilevel.stacked_record import Part, StackedRecord
from steelyard.bilevel.trained_module import unwrap
from steelyard.bilevel.truncated import MEMORY
from steelyard.reweight.identity import described, settings
from steelyard.reweight.inner import Begun, InnerRun

__all__ = ["TOGETHER", "AfterStep", "Together", "TogetherName", "Trained"]

TogetherName: TypeAlias = Literal["auto"] | bool
Trained: TypeAlias = tuple[nn.Module, Trajectory]
"""What an `InnerRun` returns: the model, and the record of its last steps."""

AfterStep: TypeAlias = Callable[[int, Stacked, Sequence[nn.Module]], None]
"""(number of steps taken, the stacked parameters after them, the models that `Stacked.put_back` can copy them into)."""

TOGETHER: list[TogetherName] = ["auto", True, False]
_CHAIN = 10_000_000  # products of a net's forward pass, above which four nets in one pass gained less than a fifth
_OTHERS = 2_000_000  # the same by `torch.func.vmap`, which has work of its own (results/benchmarks/together_sizes.md)


class Together:
    """Trains several inner runs at once: every step is one pass over all their nets, whose parameters are stacked.

    Each model and each record is that of the run by itself, up to rounding. Batches of different sizes are filled up
    with rows of weight 0. The passes of a step (forward, backward, the optimizer's) are called once instead of M times,
    which is what small nets take their time for; hypergradients are taken of each record by itself.

    The runs are trained one after the other where one pass would not be the same: on several ranks, with samples on
    disk, autocast, warm starts, a regulariser, a rounded storage, an optimizer without a closed form or with a step of
    its own, hooks, modules that couple samples, look at how many they are or draw random numbers (BatchNorm, dropout),
    what `torch.func.vmap` cannot do. Whether it is the same is looked at: losses and gradients of the first step, for
    each net by itself, and the loss of a sample alone, at calls 1, 2, 4, 8 and so on.

    Args:
        inners: the runs, of the same settings but for the seed and for what makes their models, which must be of one
            architecture; of more tasks than runs the first run takes the one after the last run's, and so on, or a
            copy of it.
        together: "auto": where the nets are small, by a count of the products of a forward pass, and the samples of a
            step, which are held for all of them at once, take at most 256 MiB; True: of any size; False: never.

    Attributes:
        apart: why the last call trained one after the other; "" where it did not.

    Example:
        >>> from functools import partial
        >>> import torch.nn.functional as F
        >>> from steelyard.bilevel import WeightedLoss
        >>> objective = WeightedLoss(partial(F.cross_entropy, reduction="none"))
        >>> inner = InnerRun(lambda: nn.Linear(3, 2), partial(torch.optim.SGD, lr=0.1), objective, steps=5)
        >>> data = Batch.of(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))
        >>> weights = torch.tensor([[1.0, 1, 0, 0], [0, 1, 1, 1]])
        >>> [trajectory.index.tolist() for _, trajectory in Together([inner])([data, data], weights)]
        [[0, 1], [1, 2, 3]]
    """

    def __init__(self, inners: Sequence[InnerRun], together: TogetherName = "auto") -> None:
        self.together = _check.choice("together", together, TOGETHER)
        self._inners = list(inners)
        self._copies = list(inners)
        self.apart = ""
        self._barred = _differing(self._inners)
        self._calls, self._products, self._limit, self._least, self._bytes = 0, 0.0, 0, 0, 0.0

    def __call__(self, train: Sequence[Batch], weights: Sequence[Tensor] | Tensor) -> Iterator[Trained]:
        """Yield the model and the record of each run, in order; where they train one after the other, as it is asked.

        Args:
            train: the samples of every task.
            weights: ``(n,)`` for each, as an `InnerRun` takes it.
        """
        found = self.trained(train, weights)
        if found is not None:
            yield from found
            return
        for run, batch, weight in zip(cycle(self._inners), train, weights, strict=False):
            yield run(batch, weight)

    def trained(
        self, train: Sequence[Batch], weights: Sequence[Tensor] | Tensor, after_step: AfterStep | None = None
    ) -> list[Trained] | None:
        """Return what a call yields, trained as one; None where that is not the same, or no gain (`apart` says why).

        `after_step` is called after each step; it may read the stacks, not change them.
        """
        self.apart = self._why_apart(train, weights)
        begun = [] if self.apart else self._begun(train, weights)
        return None if self.apart else self._trained(begun, after_step)

    def runs(self, count: int) -> list[InnerRun]:
        """Return the runs of so many tasks, each with a model of its own: copies of the first ones follow the last."""
        while len(self._copies) < count:
            self._copies.append(self._inners[len(self._copies) % len(self._inners)].twin())
        return self._copies[:count]

    def _why_apart(self, train: Sequence[Batch], weights: Sequence[Tensor] | Tensor) -> str:
        """Return what can be said before samples are gathered."""
        if self.together is False:
            return "together=False"
        if len(train) < 2:
            return "one run"
        if any(isinstance(one, Streamed) for one in train):
            return "the samples are on disk"
        if any(one.settle(batch.device) is not None for one, batch in zip(self._inners, train, strict=False)):
            return "autocast"
        return self._barred or ("" if self.together is True else self._too_large(train[0], weights))

    def _too_large(self, train: Batch, weights: Sequence[Tensor] | Tensor) -> str:
        """Return that nets or samples are too large for it, as far as is counted; a function of the arguments alone."""
        first = self._inners[0]
        if not self._limit:
            model, few = first.prepared(train.device), train.take(torch.arange(min(2, len(train))))
            self._products = products_of(model, first.objective, few) / len(few)
            self._bytes = sum(one.nbytes for _, one in named_tensors("inputs", few.inputs)) / len(few)
            self._least = sum(p.numel() for p in model.parameters())
            self._limit = _CHAIN if Stacked([model]).chained else _OTHERS
        rows = max(int((one > 0).sum()) for one in weights)
        rows = min(rows, first.batch_size or rows)
        products, held = max(self._least, self._products * rows), self._bytes * rows * len(weights)
        if products > self._limit:
            return f"a forward pass of a net multiplies {products:.3g} times, more than {self._limit:.3g}"
        return f"the samples of a step take {held:.3g} bytes, more than {MEMORY:.3g}" if held > MEMORY else ""

    def _begun(self, train: Sequence[Batch], weights: Sequence[Tensor] | Tensor) -> list[_Run]:
        """Return the runs before their first step; `apart` says why that is not to be taken together."""
        begun = [
            _Run(run.objective, run.begin(batch, weight))
            for run, batch, weight in zip(self.runs(len(train)), train, weights, strict=True)
        ]
        self._calls += 1
        if not self._calls & (self._calls - 1):
            self._barred = self.apart = _unlike(begun) or _unequal(begun)
        return begun

    def _trained(self, begun: list[_Run], after_step: AfterStep | None) -> list[Trained]:
        first, models, objectives = self._inners[0], [one.model for one in begun], [one.objective for one in begun]
        stacked = Stacked(models)
        optimizer = stacked_optimizer(begun[0].optimizer, models[0], stacked)
        record = StackedRecord(stacked, optimizer, models, first.window > 1)
        stacks = list(stacked.parameters())
        parts: list[Part] = []
        batch, weight = begun[0].part
        with seeded(batch.device, begun[0].seed):
            for step in range(first.steps):
                first.set_rates(optimizer, step / first.steps)
                now = [one.next() for one in begun]
                if not parts or any(one[0] is not other[0] for one, other in zip(now, parts, strict=True)):
                    parts = now  # (all kept samples in every step are the same batch)
                    batch, weight = stacked_batch(parts, objectives)
                for stack in stacks:
                    stack.grad = None
                (weight * objectives[0].sample_losses(stacked, batch)).sum().backward()
                if step >= first.steps - first.window:
                    record.note(parts)
                optimizer.step()
                if after_step is not None:
                    after_step(step + 1, stacked, models)
        stacked.put_back(models)
        return list(zip(models, record.trajectories(objectives), strict=True))


class _Run:
    """A run that has begun; its first batch can be looked at before it is taken."""

    def __init__(self, objective: WeightedLoss, begun: Begun) -> None:
        self.objective = objective
        self.model, self.optimizer, self.seed = begun.model, begun.optimizer, begun.seed
        self._batches = begun.batches
        self.part: Part = next(begun.batches)
        self._taken = False

    def next(self) -> Part:
        """Return the part of the next step."""
        if self._taken:
            self.part = next(self._batches)
        self._taken = True
        return self.part


def _differing(inners: Sequence[InnerRun]) -> str:
    """Return why runs of these settings are trained one after the other."""
    if any(one.ranks.size > 1 for one in inners):
        return "several ranks"
    if not all(one.restart for one in inners):
        return "a warm start"
    if any(summed_by_weight(one.objective) is None or one.objective.regulariser is not None for one in inners):
        return "the inner loss is no plain sum of samples' losses"
    if any(one.window > 1 and one.storage != Storage() for one in inners):
        return "steps are not stored whole"
    apart = ("seed", "model")  # what makes the models may know its seed; the models are compared themselves
    facts = [{name: described(value) for name, value in settings(one).items() if name not in apart} for one in inners]
    if len({id(one.schedule) for one in inners}) > 1:  # known by names, which say nothing of what they were made with
        for one, found in zip(inners, facts, strict=True):
            if one.schedule is not None:
                found["schedule"] += f" {[float(one.schedule(step / one.steps)) for step in range(one.steps)]}"
    other = next((one for one in facts if one != facts[0]), facts[0])
    names = [name for name, value in facts[0].items() if other.get(name) != value]
    return f"the runs differ in {', '.join(names)}" if names else ""


def _unlike(begun: Sequence[_Run]) -> str:
    """Return what of the models and the optimizers does not let them be trained as one."""
    first = begun[0].optimizer
    optimizers = [one.optimizer for one in begun]
    if type(first) not in SUPPORTED:
        return f"{type(first).__name__} has no closed form"
    if any(has_hooks(one.model) for one in begun):
        return "hooks"
    if any(unwrap(one.model) is not one.model for one in begun):
        return "a compiled module"
    if any(str(one.model) != str(begun[0].model) for one in begun):
        return "the models differ"
    if any(_groups(one) != _groups(begun[0]) for one in begun):
        return "the optimizers differ"
    if any(
        one._optimizer_step_pre_hooks or one._optimizer_step_post_hooks or "step" in vars(one) for one in optimizers
    ):
        return "hooks of the optimizer"  # (or a `step` of its own instead of the class's, which may clip)
    own = set(begun[0].model.parameters())
    if any(p not in own for group in first.param_groups for p in group["params"]):
        return "the optimizer has a tensor that is not the model's"  # which the first run by itself refuses
    try:
        Stacked([one.model for one in begun])
    except ValueError as error:
        return str(error)
    return ""


def _unequal(begun: Sequence[_Run]) -> str:
    models, objectives = [one.model for one in begun], [one.objective for one in begun]
    return why_not_alike(Stacked(models), models, objectives, [one.part for one in begun])


def _groups(run: _Run) -> list[object]:
    """Return the settings of the optimizer's groups, with the names of the parameters in them."""
    names = {p: name for name, p in run.model.named_parameters()}
    found: list[object] = [type(run.optimizer)]
    for group in run.optimizer.param_groups:
        plain = {key: value for key, value in group.items() if key != "params"}
        found.append({**plain, "params": [names.get(p) for p in group["params"]]})
    return found
