"""What finders of groups find on the sets, beside the groups that the sets have."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from steelyard._support._files import write_text
from steelyard.experiments.compare.table import Table
from steelyard.experiments.data import Splits
from steelyard.experiments.methods import UpWeighting
from steelyard.experiments.methods.found_groups import Given
from steelyard.experiments.runs.recipe import load_recipe
from steelyard.experiments.training.problem import Problem
from studies.photographs.rows import FOUND
from studies.photographs.sets import Source

__all__ = ["minority", "report", "table"]

_RECIPE = "waterbirds/features/upweighting"


def report(sources: Sequence[Source], seeds: Sequence[int], out: Path, told: Callable[[str], None]) -> None:
    """Write `finders.md`; see `table`."""
    found = table({one.case: one.load for one in sources}, seeds, told)
    write_text(out / "finders.md", found.markdown())


def table(sets: dict[str, Callable[[int], Splits]], seeds: Sequence[int], told: Callable[[str], None]) -> Table:
    """Return how many training samples each finder takes out, how much of the minority, and how many of them it is.

    A finder reads neither groups nor anything of the test. MAPLE's cut is left out: it may refuse.
    """
    lines = []
    for case, load in sets.items():
        for way in (one for one in FOUND if one != "maple"):
            told(f"{case}: {way}")
            hits = [_hits(load(seed), way, seed) for seed in seeds]
            lines.append([case, way, *(_spread([hit[k] for hit in hits]) for k in range(4))])
    head = ("set", "finder", "taken out, % of training", "of the minority, %", "minority among them, %", "by chance")
    notes = [
        f"Mean ± standard deviation over the data seeds {', '.join(map(str, seeds))}; each finder's own default "
        "settings. The minority of a class are its samples on the place where fewer of them stand; by chance: its "
        "share of training. EIIL's split is that of the errors: there are two classes."
    ]
    return Table(head, lines, notes)


def minority(targets: Int[Tensor, " n"], groups: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Return who is of a class's smaller group.

    Example:
        >>> minority(torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 0, 1, 2, 3, 3])).tolist()
        [False, False, True, True, False, False]
    """
    found = torch.zeros_like(groups, dtype=torch.bool)
    sizes = groups.bincount()
    for label in targets.unique():
        own = groups[targets == label].unique()
        found |= groups == own[sizes[own].argmin()]
    return found


def _hits(splits: Splits, way: str, seed: int) -> tuple[float, float, float, float]:
    recipe = load_recipe(_RECIPE, (f"method.groups.name={way}",), seed)
    assert isinstance(recipe.method, UpWeighting)
    source, data = recipe.method.groups, splits.train
    assert not isinstance(source, Given)
    assert data.group is not None
    rare, true = source.rare(Problem(splits, recipe.model, seed)), minority(data.targets, data.group)
    hit = int((rare & true).sum())
    return _share(rare), 100 * hit / int(true.sum()), 100 * hit / max(1, int(rare.sum())), _share(true)


def _share(members: Bool[Tensor, " n"]) -> float:
    return 100 * float(members.double().mean())


def _spread(values: Sequence[float]) -> str:
    more = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{more}"
