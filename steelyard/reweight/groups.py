"""Groups found in what MAPLE learned: cut the keep-probabilities in two, refuse one hump, give every cell its mass.

Where a shortcut misleads, MAPLE keeps the samples that contradict it and drops most of the others: s has two humps, and
the hump above is the group that no column of the data names. Whether there are two is tested, not assumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard._support._text import few
from steelyard.reweight.humps import TwoMeans, Valley, adjusted_rand, two_means, valley

__all__ = ["FoundGroups", "OneHumpError", "balance", "find_groups"]

_REMEDY = "take groups that are known, or none; find_groups(..., level=1, least_ratio=0) cuts all the same"


class OneHumpError(ValueError):
    """The keep-probabilities show no two groups: they have one hump, or other runs cut them elsewhere.

    Attributes:
        found: the figures, and the groups that were refused.
    """

    def __init__(self, message: str, found: FoundGroups) -> None:
        super().__init__(message)
        self.found = found


@dataclass(frozen=True, eq=False)
class FoundGroups:
    """Two groups of samples, those that were kept and the rest, and how sure it is that there are two.

    Attributes:
        high: ``(n,)`` whether a sample's keep-probability is above the cut.
        cells: ``(n,)`` int64, 2 label + high: what `balance`, `reweight.GroupWeights` and Group DRO take as groups.
            Without labels 0 or 1.
        probabilities: ``(n,)`` the keep-probabilities that were cut: with repeats, those of the run with the deepest
            valley.
        cut: where they were cut.
        two_means: the two-means cut of the same numbers.
        valley: the deepest valley, with its test against one hump.
        least_of_class: over the classes, the least share of a class that is in one of the groups; 0.5 without labels.
        agreements: the adjusted Rand index of `high` with the groups of each of the other runs, where there are any.
    """

    high: Bool[Tensor, " n"]
    cells: Int[Tensor, " n"]
    probabilities: Float[Tensor, " n"]
    cut: float
    two_means: TwoMeans
    valley: Valley
    least_of_class: float = 0.5
    agreements: tuple[float, ...] = ()

    def figures(self) -> dict[str, float]:
        """Return what is known of the cut, as numbers by name, for a history or a table."""
        found = {
            "cut": self.cut,
            "high_share": float(self.high.double().mean()),
            "two_means_cut": self.two_means.at,
            "share_between": self.two_means.share_between,
            "valley_ratio": self._plain(self.valley.ratio),
            "valley_p": self.valley.p_value,
            "least_of_class": self.least_of_class,
        }
        return found | {f"agreement_{k}": value for k, value in enumerate(self.agreements)}

    def _plain(self, ratio: float) -> float:
        """Return a number that a file can hold, where the ratio is infinite too."""
        return min(ratio, float(len(self.high)))


def find_groups(
    probabilities: Float[Tensor, " n"] | Numbers,
    targets: Int[Tensor, " n"] | Numbers | None = None,
    *,
    cut: Literal["valley", "two_means"] = "valley",
    repeats: Sequence[Float[Tensor, " n"] | Numbers] = (),
    level: float | int = 0.01,
    least_ratio: float | int = 2.0,
    least_share: float | int = 0.02,
    least_agreement: float | int = 0.8,
    reach: float | int = 0.5,
    margin: float | int = 0.05,
) -> FoundGroups:
    """Cut keep-probabilities into two groups, or refuse where they have one hump.

    Two groups are accepted where the deepest valley of s has a p-value of at most `level` and a ratio of at least
    `least_ratio` (`valley` states the test; docs/guides/groups.md its error rates), and where each class has
    `least_share` of its samples or more in both groups: two classes that are kept differently make two humps too. The
    share of variance between the groups is reported and decides nothing.

    With repeats the run with the deepest valley is cut, at `level` divided by the number of runs, and every other run,
    cut in its own valley, has to find nearly the same groups. Give repeats another seed and a budget a third larger.

    What one run cannot show: Adam's steps have one size whatever the gradient's. If the gradients of one hump hold
    their signs over the run, s moves to both ends and has two humps. Its cut follows the budget, so repeats disagree,
    unless the gradients of one run foretell nearly all of another's.

    Args:
        probabilities: ``(n,)`` learned s in [0, 1].
        targets: ``(n,)`` class ids, for the cells and the shares of classes; None: neither.
        cut: at the middle of the "valley" (the default: two-means cuts into the broad hump where one hump is broad and
            the other narrow, as on coloured digits), or by "two_means" (Otsu's).
        repeats: the probabilities ``(n,)`` of the same samples in the same order from runs with other seeds and another
            budget.
        level: greatest p-value of the valley.
        least_ratio: least ratio of the lower hump and the valley: of many samples a dent is significant.
        least_share: least share of each class in either group.
        least_agreement: least adjusted Rand index with each of the other runs.
        reach, margin: of `valley`.

    Raises:
        OneHumpError: the numbers show no two groups; `found` of the error holds the figures and the groups that were
            refused.
        ValueError: fewer than two different probabilities, entries outside [0, 1], lengths that differ, negative
            class ids.

    Example:
        >>> s = torch.cat([torch.linspace(0, 0.3, 600), torch.linspace(0.8, 1, 400)])
        >>> found = find_groups(s, torch.arange(1000) % 2)
        >>> int(found.high.sum()), found.cells.bincount().tolist()
        (400, [300, 200, 300, 200])
    """
    _check.choice("cut", cut, ("valley", "two_means"))
    level = _check.in_range("level", level, low=0.0, high=1.0)
    least_ratio = _check.in_range("least_ratio", least_ratio, low=0.0)
    least_share = _check.in_range("least_share", least_share, low=0.0, high=0.5)
    least_agreement = _check.in_range("least_agreement", least_agreement, low=-1.0, high=1.0)
    runs = {"probabilities": probabilities} | {f"repeats[{number}]": one for number, one in enumerate(repeats)}
    all_found = {name: _found(one, targets, cut, reach, margin) for name, one in runs.items()}
    _check.same_length(**{name: one.high for name, one in all_found.items()})
    deepest = min(all_found, key=lambda name: (all_found[name].valley.p_value, -all_found[name].valley.ratio))
    found = all_found.pop(deepest)
    agreements = {name: adjusted_rand(found.high, other.high) for name, other in all_found.items()}
    found = replace(found, agreements=tuple(agreements.values()))
    _refuse(found, level / len(runs), least_ratio, least_share)
    for name, agreement in agreements.items():
        if agreement < least_agreement:
            raise OneHumpError(
                f"{name} and {deepest} find different groups: their adjusted Rand index is {agreement:.2f} (two groups "
                f"need {least_agreement:g}), so the cut says more of the run than of the samples; take groups that are "
                "known, or none; find_groups(..., least_agreement=-1) cuts all the same",
                found,
            )
    return found


def _found(
    probabilities: Tensor | Numbers,
    targets: Tensor | Numbers | None,
    cut: Literal["valley", "two_means"],
    reach: float | int,
    margin: float | int,
) -> FoundGroups:
    s = _check.floats("probabilities", probabilities, ("n",)).detach()
    if len(s) and bool((s == s[0]).all()):
        raise ValueError(
            f"probabilities are all {float(s[0]):g}, so there are no groups in them; give some that were learned, "
            "under a budget below the number of samples"
        )
    dip, middle = valley(s, reach=reach, margin=margin), two_means(s)
    at = dip.at if cut == "valley" else middle.at
    high = s.double() > at
    cells, least = high.long(), 0.5
    if targets is not None:
        labels = _check.integers("targets", targets).to(s.device)
        _check.same_length(probabilities=s, targets=labels)
        if int(labels.min()) < 0:
            raise ValueError(f"targets must be class ids >= 0, got {int(labels.min())}")
        cells = 2 * labels + cells
        shares = [float(high[labels == label].double().mean()) for label in labels.unique().tolist()]
        least = min(min(share, 1 - share) for share in shares)
    return FoundGroups(high, cells, s, at, middle, dip, least)


def _refuse(found: FoundGroups, level: float, least_ratio: float | int, least_share: float | int) -> None:
    """Raise OneHumpError where the figures of a run show no two groups."""
    dip = found.valley
    if dip.p_value > level or dip.ratio < least_ratio:
        raise OneHumpError(
            f"probabilities have no two humps: their deepest valley, at {dip.at:.2f}, has p = {dip.p_value:.2g} (two "
            f"groups need {level:g} or less) and ratio {dip.ratio:.2g} (they need {least_ratio:g}); of their variance "
            f"{found.two_means.share_between:.2f} lies between the halves of a two-means cut; {_REMEDY}",
            found,
        )
    if found.least_of_class < least_share:
        raise OneHumpError(
            f"probabilities have two humps that tell classes apart: a class has {found.least_of_class:.2g} of its "
            f"samples in one of them (groups need {least_share:g} of each class); find_groups(..., least_share=0) cuts "
            "all the same",
            found,
        )


def balance(
    weights: Float[Tensor, " n"] | Numbers,
    cells: Int[Tensor, " n"] | Numbers,
    shares: Mapping[int, float | int] | None = None,
) -> Float[Tensor, " n"]:
    """Return weights under which every cell has its share of the mass; within a cell their ratios are as before.

    Args:
        weights: ``(n,)`` >= 0, such as ones, or s w of a run.
        cells: ``(n,)`` a cell for each sample, by any number: `FoundGroups.cells`, label x found group.
        shares: of the mass, by cell, in proportion (they need not sum to 1); None: equal.

    Returns:
        ``(n,)``, with the sum of `weights`.

    Raises:
        ValueError: lengths that differ, a weight that is negative or not finite, a cell without a share or with one
            below 0, shares that are all 0, or a cell that has a share and no weight.

    Example:
        >>> balance(torch.ones(4), torch.tensor([7, 7, 7, 9])).tolist()
        [0.6666666865348816, 0.6666666865348816, 0.6666666865348816, 2.0]
    """
    given = _check.finite("weights", _check.floats("weights", weights, ("n",)))
    of = _check.integers("cells", cells).to(given.device)
    if not _check.same_length(weights=given, cells=of):
        return given.clone()
    if float(given.min()) < 0:
        raise ValueError(f"weights must be >= 0, the smallest is {float(given.min())}")
    ids, place = of.unique(return_inverse=True)
    wanted = torch.tensor(_shares(ids.tolist(), shares), dtype=torch.float64, device=given.device)
    mass = torch.zeros_like(wanted).index_add_(0, place, given.double())
    if bool(((mass == 0) & (wanted > 0)).any()):
        empty = ids[(mass == 0) & (wanted > 0)].tolist()
        raise ValueError(
            f"cells [{few(empty)}] have no weight: all their samples weigh 0; keep some of each, or give them a share "
            "of 0"
        )
    factor = torch.where(mass > 0, wanted / wanted.sum() * mass.sum() / mass.clamp_min(1e-300), 0)
    return (given.double() * factor[place]).to(given.dtype)


def _shares(ids: list[int], shares: Mapping[int, float | int] | None) -> list[float]:
    """Return the share of each cell in `ids`."""
    if shares is None:
        return [1.0] * len(ids)
    missing = [one for one in ids if one not in shares]
    if missing:
        raise ValueError(f"shares has no entry for cells [{few(missing)}], which have samples; give each one")
    found = [float(_check.in_range(f"shares[{one}]", shares[one], low=0.0)) for one in ids]
    if not sum(found):
        raise ValueError("shares are 0 for every cell that has samples; give at least one of them more")
    return found
