"""A run of several processes: which methods can be shared, and what each process has of the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

import steelyard
from steelyard._support._agreement import sample_kinds
from steelyard._support._plain import plain
from steelyard.bilevel import Batch, Streamed
from steelyard.distributed import Ranks
from steelyard.experiments import methods
from steelyard.experiments.data import Splits
from steelyard.experiments.errors import RecipeError
from steelyard.experiments.runs.recipe import Recipe
from steelyard.experiments.training.batches import part
from steelyard.experiments.training.problem import Problem
from steelyard.reweight.identity import described

__all__ = ["SHARED", "Shares", "check_alike", "check_model", "check_shared", "loaded"]

SHARED = (
    methods.ERM,
    methods.IRMv1,
    methods.VREx,
    methods.BayesianIRM,
    methods.UpWeighting,
    methods.CVaRDRO,
    methods.GroupDRO,
    methods.KLDRO,
    methods.OrderedSGD,
    methods.JTT,
    methods.PDE,
    methods.Maple,
)
"""The methods whose steps are a function of the model's outputs for a batch, and MAPLE."""


@dataclass(frozen=True)
class Shares(Splits):
    """What one of several processes has of each split: a block of its samples, which need not have every environment.

    Facts and ids are those of all samples.
    """

    def __post_init__(self) -> None:
        """Check nothing: the whole splits were."""


def check_shared(recipe: Recipe, ranks: Ranks) -> None:
    """Raise RecipeError if `recipe` cannot be carried out by several processes."""
    if ranks.size == 1:
        return
    remedy = "carry it out in one process, `steelyard run` without torchrun"
    if not isinstance(recipe.method, SHARED):
        names = ", ".join(str(field.default) for kind in SHARED for field in fields(kind) if field.name == "name")
        raise RecipeError(
            f"method {recipe.method.name!r} cannot be shared by {ranks.size} processes ({names} can); {remedy}"
        )
    if isinstance(recipe.method, methods.Maple) and recipe.method.prior.scores:
        raise RecipeError(f"method.prior: scores are not computed by {ranks.size} processes; {remedy}")
    if getattr(recipe.data, "augment", False):
        raise RecipeError(
            f"data.augment draws by an image's place in the batch, which is another in {ranks.size} processes; set "
            f"data.augment = false, or {remedy}"
        )
    if torch.device(recipe.device).index is not None:
        raise RecipeError(
            f"device {recipe.device!r} is one device, and {ranks.size} processes need one each: take "
            f"{torch.device(recipe.device).type!r}, which is each one's own"
        )


def check_alike(ranks: Ranks, recipe: Recipe, **options: object) -> None:
    """Raise RankError unless all ranks have the same recipe, options, and versions of what computes it."""
    if ranks.size > 1:
        versions = {"steelyard": steelyard.__version__, "torch": torch.__version__}
        ranks.agree("the run", {**dict(_leaves(plain(recipe))), **options, **versions})


def _leaves(table: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def check_model(problem: Problem) -> None:
    """Raise RecipeError if the model of `problem` normalises by the batch, and several processes train it."""
    if problem.ranks.size > 1 and any(isinstance(module, _BatchNorm) for module in problem.model().modules()):
        raise RecipeError(
            f"model {problem.model_settings.name!r} has BatchNorm, which would normalise each process's part of a "
            "batch by itself; carry the recipe out in one process, or take a model without it"
        )


def loaded(load: Callable[[], Splits], ranks: Ranks) -> Splits:
    """Return what `load` returns; on several ranks this one's `Shares` of it.

    The first rank loads before the others: what it downloads or computes and keeps (features), the others find.

    Raises:
        ValueError: a split has fewer samples than there are ranks.
        RankError: the ranks loaded different data.
    """
    if ranks.size == 1:
        return load()
    own = None
    for first in (True, False):
        turn = first is (ranks.rank == 0)
        found = ranks.together(lambda turn=turn: _loaded(load(), ranks) if turn else None)  # type: ignore[misc]
        own = found or own
    assert own is not None  # every rank had its turn
    ranks.agree("the data", own[1])
    return own[0]


def _loaded(splits: Splits, ranks: Ranks) -> tuple[Shares, dict[str, str]]:
    """Return this rank's share, and what all ranks must have loaded alike: samples, their types and their labels."""
    facts = {
        "classes": str(splits.classes),
        "scale of the target": str(splits.target_scale),
        "environments": str(splits.environments),
    }
    facts |= {f"the file {name}": digest for name, digest in splits.sources.items()}
    for name in ("train", "validation", "test"):
        data = getattr(splits, name)
        facts |= {f"samples of {name}": str(len(data)), **sample_kinds(name, data)}
        facts |= {f"{name}.{field}": described(getattr(data, field)) for field in ("targets", "environment", "group")}
    return _share(splits, ranks), facts


def _share(splits: Splits, ranks: Ranks) -> Shares:
    own: dict[str, Any] = {}
    for name in ("train", "validation", "test"):
        data = getattr(splits, name)
        if len(data) < ranks.size:
            raise ValueError(
                f"the {name} split has {len(data)} samples, fewer than the {ranks.size} processes; start fewer"
            )
        own[name] = _block(data, ranks.share(len(data)))
    kept = {name: getattr(splits, name) for name in _OF_ALL}
    return Shares(**kept, **own)


_OF_ALL = ("name", "classes", "environments", "facts", "groups", "ids", "notes", "sources", "target_scale")


def _block(data: Batch, positions: torch.Tensor) -> Batch:
    return part(data, positions) if isinstance(data, Streamed) else data.take(positions)
