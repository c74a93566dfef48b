"""`python -m studies.groups.rates`: how often does the test of two humps accept, with and without groups?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from steelyard._support import _files
from steelyard.bilevel import Batch, WeightedLoss
from steelyard.cli.options import check_seeds, check_writable
from steelyard.experiments.compare.table import Table
from steelyard.reweight import InnerRun, Maple, OneHumpError, Reweighting, Sqrt, VREx, adjusted_rand
from studies._command import command_line

__all__ = ["LAWS", "Law", "judged", "main", "tables"]

_BUDGET, _LARGER = 0.3, 0.4  # shares of the samples: the paper's, and a third more


@dataclass(frozen=True)
class Law:
    """What generated samples are drawn from.

    Attributes:
        flips: the share of each of two environments in which the shortcut contradicts the label.
        size: of the shortcut; its noise has size 1. 0: the column is noise.
        wrong: share of wrong labels, beside which the shortcut follows the given label.
        count: samples.
    """

    flips: tuple[float, float] = (0.1, 0.2)
    size: float = 6.0
    wrong: float = 0.1
    count: int = 1000

    @property
    def grouped(self) -> bool:
        """Whether a group is there to be found: environments differ in how often the shortcut misleads."""
        return self.size > 0 and self.flips[0] != self.flips[1]


LAWS: dict[str, Law] = {
    "shortcut": Law(),
    "few samples": Law(count=400),
    "many samples": Law(count=3000),
    "weaker column": Law(size=3.0),
    "weak column": Law(size=2.0),
    "more often wrong": Law(flips=(0.2, 0.3)),
    "20 % wrong labels": Law(wrong=0.2),
    "30 % wrong labels": Law(wrong=0.3),
    "no column": Law(size=0.0),
    "no column, few samples": Law(size=0.0, count=400),
    "no column, many samples": Law(size=0.0, count=3000),
    "no column, 30 % wrong labels": Law(size=0.0, wrong=0.3),
    "column by chance": Law(flips=(0.5, 0.5)),
    "column by chance, 30 % wrong labels": Law(flips=(0.5, 0.5), wrong=0.3),
    "same shortcut in both environments": Law(flips=(0.15, 0.15)),
}
"""By name; those without a group last."""


def rates(out: Path = Path("results/groups"), seeds: tuple[int, ...] = (0, 1, 2, 3)) -> None:
    """Draw data of each law and seed, fit MAPLE with two budgets, and write how often groups are accepted.

    Args:
        out: folder for `rates.md`.
        seeds: of data, masks and initial parameters.
    """
    check_seeds("--seeds", seeds)
    check_writable("--out", out)
    console = Console()
    rows = []
    for name in LAWS:
        rows += [judged(name, seed) for seed in seeds]
        console.print(name, markup=False)
    _files.write_text(out / "rates.md", tables(rows).markdown())
    console.print(f"Written: {out / 'rates.md'}", markup=False, soft_wrap=True)


def judged(name: str, seed: int) -> dict[str, Any]:
    """Return what the test says of a law's data: by one fit, and with a repeat of a larger budget beside it."""
    train, rare = _drawn(LAWS[name], seed)
    one, two = (_fitted(train, budget, seed + 1000 * (budget == _LARGER)) for budget in (_BUDGET, _LARGER))
    high = one.groups(level=1, least_ratio=0, least_share=0).high
    return {
        "law": name,
        "seed": seed,
        "accepted": _accepts(one, train.targets),
        "repeated": _accepts(one, train.targets, two),
        "agreement": adjusted_rand(high, two.groups(level=1, least_ratio=0).high),
        "Rand": adjusted_rand(high, rare) if LAWS[name].grouped else None,
    }


def _accepts(one: Reweighting, targets: Tensor, *repeats: Reweighting) -> bool:
    try:
        one.groups(targets, repeats)
    except OneHumpError:
        return False
    return True


def _drawn(law: Law, seed: int) -> tuple[Batch, Tensor]:
    """Return samples of two environments, and who contradicts the shortcut: ten columns know the label, ten nothing."""
    draw = torch.Generator().manual_seed(seed)
    environment = torch.arange(law.count) % 2
    right = torch.rand(law.count, generator=draw) < 0.5
    given = right ^ (torch.rand(law.count, generator=draw) < law.wrong)
    rare = torch.rand(law.count, generator=draw) < torch.tensor(law.flips)[environment]
    inputs = torch.randn(law.count, 21, generator=draw)
    inputs[:, :10] += 0.4 * (2 * right.float() - 1)[:, None]
    inputs[:, 20] += law.size * (2 * (given ^ rare).float() - 1)
    return Batch.of(inputs / 3, given.long(), environment=environment), rare


def _fitted(train: Batch, budget: float, seed: int) -> Reweighting:
    def model() -> torch.nn.Module:
        torch.manual_seed(seed)
        return torch.nn.Linear(21, 2)

    loss = WeightedLoss(partial(F.cross_entropy, reduction="none"))
    inner = InnerRun(model, partial(torch.optim.SGD, lr=0.5, momentum=0.9), loss, 40, seed=seed)
    return Maple(inner, Sqrt(VREx()), budget=budget, steps=30, learn="probabilities", seed=seed).fit(train)


def tables(rows: Sequence[dict[str, Any]]) -> Table:
    """Return a line for each law that has rows."""
    lines = []
    for name, law in LAWS.items():
        own = [row for row in rows if row["law"] == name]
        if own:
            rand = f"{sum(row['Rand'] for row in own) / len(own):.2f}" if law.grouped else ""
            accepted = [f"{sum(row[key] for row in own)} of {len(own)}" for key in ("accepted", "repeated")]
            agreement = f"{sum(row['agreement'] for row in own) / len(own):.2f}"
            lines.append([name, "yes" if law.grouped else "no", *accepted, agreement, rand])
    head = ["data", "a group", "accepted", "accepted with a repeat", "Rand of the two fits", "Rand with the group"]
    return Table(head, lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with the options given and return the exit status."""
    return command_line(rates, "groups.rates", arguments)


if __name__ == "__main__":
    sys.exit(main())
