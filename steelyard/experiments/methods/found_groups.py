"""Groups of training samples for the methods that need them: the data's, or found without any group label."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from steelyard._support import _check
from steelyard._support._modules import class_logits, evaluating
from steelyard.bilevel.batch import Batch
from steelyard.bilevel.objective import SampleLoss
from steelyard.experiments.methods._reads import Reads, ReadsAsMaple
from steelyard.experiments.methods.maple import Maple
from steelyard.experiments.training import group_labels
from steelyard.experiments.training.misclassified import misclassified
from steelyard.experiments.training.problem import Problem, silent
from steelyard.experiments.training.ranges import Fixed
from steelyard.experiments.training.trainer import OptimizerSettings, Training, train
from steelyard.reweight import FoundGroups, Reweighting, budget_of

__all__ = [
    "EIIL",
    "FOUND",
    "XRM",
    "ErrorGroups",
    "Given",
    "GroupSource",
    "MapleGroups",
    "invariance_split",
    "larger_budget",
    "second_run",
    "two_runs",
]

FOUND = Fixed("groups are found before the search")
"""What a method's field of a `GroupSource` is annotated with."""


_AGAIN = 1000
"""Added to the seed of a second run."""


def larger_budget(maple: Maple, count: int) -> int:
    """Return the budget of a second run on `count` samples: a third larger, and not all of them."""
    return min(round(4 / 3 * budget_of(maple.budget, count)), round(0.9 * count))


def second_run(maple: Maple, problem: Problem) -> Reweighting:
    """Return what MAPLE learns with another seed of models, batches and masks, and a larger budget.

    It is the next stage of the problem's journal, and is not observed.
    """
    again = replace(maple, budget=larger_budget(maple, len(problem.splits.train)))
    learned = again.fit(replace(problem, seed=problem.seed + _AGAIN), silent).reweighting
    assert learned is not None  # MAPLE learns weights
    return learned


def two_runs(maple: Maple, problem: Problem, first: Reweighting, again: bool) -> FoundGroups:
    """Return the groups that a first run and a second one have in common, or those of the first alone.

    One run can settle on two humps of something else: on CIFAR-MNIST three of three did (results/groups).

    Args:
        maple: the first run's settings.
        problem: the first run's; its journal goes on.
        first: what it learned.
        again: whether there is a second run.

    Raises:
        OneHumpError: they are refused.
    """
    return first.groups(problem.splits.train.targets, [second_run(maple, problem)] if again else [])


def _identification() -> Training:
    return Training(steps=30, optimizer=OptimizerSettings("adam", 1e-2))


@dataclass(frozen=True)
class Given:
    """The group ids of the data, or label x colour of coloured images (`group_labels.with_groups`)."""

    name: Literal["given"] = "given"
    needs_training_groups: ClassVar[bool] = True
    needs_validation_groups: ClassVar[bool] = False
    needs_environments: ClassVar[bool] = False

    def label(self, problem: Problem) -> Batch:
        """Return the training samples with group ids."""
        return group_labels.with_groups(problem.splits.train)


@dataclass(frozen=True)
class _Found(Reads):
    """Label x a group that is found without group labels, in one process."""

    def label(self, problem: Problem) -> Batch:
        """Return the training samples with group ids 0, 1, ...: 2 label + rare, those without a sample left out.

        Raises:
            ValueError: several processes train together.
        """
        if problem.ranks.size > 1:
            raise ValueError(f"groups are not found by {problem.ranks.size} processes; carry the recipe out in one")
        data = problem.splits.train
        cells = 2 * data.targets + self.rare(problem).to(data.targets.device).long()
        return replace(data, group=cells.unique(return_inverse=True)[1])

    def rare(self, problem: Problem) -> Bool[Tensor, " n"]:
        """Return which training samples are of the rare group."""
        raise NotImplementedError


@dataclass(frozen=True)
class MapleGroups(ReadsAsMaple, _Found):
    """The samples above the valley of MAPLE's keep-probabilities (`reweight.find_groups`).

    Attributes:
        maple: the run, a stage of the journal; it is not observed.
        second_run: run it again, with another seed and a budget a third larger, and take groups that both runs find.

    Raises (at `label`):
        OneHumpError: the keep-probabilities have one hump.
    """

    maple: Maple
    name: Literal["maple"] = "maple"
    second_run: bool = True

    def __post_init__(self) -> None:
        self.check_learns()

    def rare(self, problem: Problem) -> Bool[Tensor, " n"]:
        """Return which training samples are of the rare group."""
        result = self.maple.fit(problem, silent).reweighting
        assert result is not None  # MAPLE learns weights
        return two_runs(self.maple, problem, result, self.second_run).high


@dataclass(frozen=True)
class ErrorGroups(_Found):
    """The samples that a short ordinary run gets wrong: JTT's error set (Liu et al. 2021, arXiv:2107.09044).

    Attributes:
        identification: the run, a stage of the journal; it is not observed.
    """

    name: Literal["errors"] = "errors"
    identification: Training = field(default_factory=_identification)

    def rare(self, problem: Problem) -> Bool[Tensor, " n"]:
        """Return which training samples are of the rare group."""
        return misclassified(problem, train(problem, self.identification, silent))


@dataclass(frozen=True)
class XRM(_Found):
    """The samples whose label either of two nets gets wrong, each trained on its own random half.

    At every step each net takes a step on its half, classes balanced; then the label of each sample becomes, with
    probability (p - 1 / C) C / (C - 1), p the confidence of the net that is not trained on it, that net's prediction.
    So each net is taught the other's shortcut, and in the end both get wrong who contradicts it (Pezeshki et al. 2023,
    "Discovering environments with XRM", arXiv:2309.16748, Algorithm 1). Departure: all of a half in every step, and a
    fixed number of steps where the paper chooses by the share of flipped labels.

    Attributes:
        steps: of both nets.
        optimizer: of each.
    """

    name: Literal["xrm"] = "xrm"
    steps: int = 50
    optimizer: OptimizerSettings = field(default_factory=lambda: OptimizerSettings("adam", 1e-2))

    def __post_init__(self) -> None:
        _check.integer("steps", self.steps, low=1)

    def rare(self, problem: Problem) -> Bool[Tensor, " n"]:
        """Return which training samples are of the rare group."""
        data = problem.splits.train
        generator = torch.Generator().manual_seed(problem.seed)
        seeds = torch.randint(2**31, (2,), generator=generator).tolist()
        nets = [replace(problem, seed=seed).model() for seed in seeds]
        optimizers = [self.optimizer.build(net.parameters()) for net in nets]
        mine = torch.randperm(len(data), generator=generator).to(data.targets.device) < len(data) // 2
        labels = data.targets.clone()
        for _ in range(self.steps):
            for net, optimizer, own in zip(nets, optimizers, (mine, ~mine), strict=True):
                net.train()
                loss = problem.loss(net(data.inputs[own]), labels[own])
                weight = _balanced(labels[own])
                optimizer.zero_grad()
                ((weight * loss).sum() / weight.sum()).backward()
                optimizer.step()
            labels = _flipped(labels, _held_out(nets, data, mine), generator)
        wrong = [_logits(net, data).argmax(1) != data.targets for net in nets]
        return wrong[0] | wrong[1]


@dataclass(frozen=True)
class EIIL(_Found):
    """The smaller side of the split of the samples that makes a fixed model's IRM penalty greatest.

    A model is trained by ERM; `invariance_split` of its outputs are the two environments (Creager et al. 2021,
    "Environment inference for invariant learning", arXiv:2010.07249, equation 6). With two classes these are the
    samples that the model gets wrong and those that it gets right, so EIIL finds what `ErrorGroups` finds.

    Attributes:
        identification: the ERM run, a stage of the journal; it is not observed.
    """

    name: Literal["eiil"] = "eiil"
    identification: Training = field(default_factory=_identification)

    def rare(self, problem: Problem) -> Bool[Tensor, " n"]:
        """Return which training samples are of the rare group."""
        model = train(problem, self.identification, silent)
        data = problem.splits.train
        with evaluating(model), torch.no_grad():
            outputs = torch.cat([model(part.inputs) for part in data.chunks(10_000)])
        one = invariance_split(_slopes(problem.loss, outputs, data.targets))
        return one if int(one.sum()) * 2 <= len(one) else ~one


GroupSource: TypeAlias = Given | MapleGroups | ErrorGroups | XRM | EIIL


def invariance_split(slopes: Float[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Return the split into two environments that makes the IRM penalty greatest.

    Soft assignments q maximise ``(sum q_i g_i / n)^2 + (sum (1 - q_i) g_i / n)^2``, g the slopes, as the authors' code
    does by Adam. The sum of both is given, so the penalty grows with their difference, which is greatest where q_i is
    1 for all g_i > 0 and 0 for the others, or the reverse: no search is needed.

    Args:
        slopes: ``(n,)`` each sample's derivative of the loss for a factor of the outputs.
    """
    return slopes > 0


def _slopes(loss: SampleLoss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return d loss(c outputs) / dc at c = 1 of every sample ``(n,)``: its outputs times their gradient."""
    with torch.enable_grad():
        leaf = outputs.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf, targets).sum(), leaf)
    return (gradient * outputs).flatten(1).sum(1)


def _balanced(labels: Tensor) -> Tensor:
    """Return weights under which every class has the same mass."""
    _, place, sizes = labels.unique(return_inverse=True, return_counts=True)
    return 1 / sizes.double()[place].to(torch.get_default_dtype())


@torch.no_grad()
def _logits(net: nn.Module, data: Batch) -> Tensor:
    with evaluating(net):
        return torch.cat([class_logits(net(part.inputs)) for part in data.chunks(10_000)])


def _held_out(nets: list[nn.Module], data: Batch, mine: Tensor) -> Tensor:
    """Return the probabilities ``(n, classes)`` by the net that is not trained on the sample."""
    first, second = (_logits(net, data).softmax(1) for net in nets)
    return torch.where(mine[:, None], second, first)


def _flipped(labels: Tensor, probabilities: Tensor, generator: torch.Generator) -> Tensor:
    confidence, predicted = probabilities.max(1)
    classes = probabilities.shape[1]
    chance = (confidence - 1 / classes) * classes / (classes - 1)
    drawn = torch.rand(len(labels), generator=generator).to(labels.device)
    return torch.where(drawn < chance, predicted, labels)
