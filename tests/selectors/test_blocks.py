"""What is computed in blocks, for pools too large for all pairs at once, comes out the same in blocks of any size."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from steelyard import selectors


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def points(n: int = 90) -> Tensor:
    return torch.randn(n, 3, generator=generator(), dtype=torch.float64)


def chances(*shape: int) -> Tensor:
    return torch.randn(*shape, 4, generator=generator(), dtype=torch.float64).mul(2).softmax(-1)


def subset(found: selectors.WeightedSelection) -> Tensor:
    return torch.cat([found.index.double(), found.weight])


CASES: dict[str, tuple[str, Callable[[], object]]] = {
    "kmeans": ("clusters", lambda: selectors.kmeans(points(), 7, generator=generator())),
    "typicality": ("typiclust", lambda: selectors.typicality(points(), neighbours=5)),
    "typiclust": ("typiclust", lambda: selectors.typiclust(points(), 9, generator=generator(), labelled=points(6))),
    "prob_cover": ("prob_cover", lambda: selectors.prob_cover(points(), 12, radius=0.6, labelled=points(4) / 2)),
    "pure_radius": (
        "prob_cover",
        lambda: torch.tensor(selectors.pure_radius(points(), torch.arange(90) % 3)),
    ),
    "craig": ("craig", lambda: subset(selectors.craig(points(), 8))),
    "batch_bald": (
        "batch_bald",
        lambda: selectors.batch_bald(chances(5, 60), 6, generator=generator(), configurations=40),
    ),
    "epig": ("epig", lambda: selectors.epig(chances(5, 60), chances(5, 7))),
    "knn_shapley": (
        "knn_shapley",
        lambda: selectors.knn_shapley(points(), torch.arange(90) % 3, points(11) / 2, torch.arange(11) % 3),
    ),
    "bait": ("bait", lambda: selectors.bait(chances(30), points(30), 4)),
}


@pytest.mark.parametrize("block", [1, 37, 200])
@pytest.mark.parametrize("name", CASES)
def test_blocks_of_any_size_give_what_one_gives(name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module, call = CASES[name]
    whole = call()
    monkeypatch.setattr(sys.modules[f"steelyard.selectors.{module}"], "_BLOCK", block)
    torch.testing.assert_close(call(), whole, rtol=1e-12, atol=0.0)


def test_scores_that_read_a_row_at_a_time_can_be_cut_anywhere() -> None:
    """These have no blocks: a million samples are a thousand calls as well as one."""
    draws, p, labels = chances(4, 50), chances(50), torch.arange(50) % 4
    seen = torch.randint(4, (6, 50), generator=generator())
    calls: tuple[tuple[Callable[..., Tensor], tuple[Tensor, ...]], ...] = (
        (selectors.vote_entropy, (draws,)),
        (selectors.consensus_kl, (draws,)),
        (selectors.self_confidence, (p, labels)),
        (selectors.normalised_margin, (p, labels)),
        (selectors.forgetting_events, (seen, labels)),
    )
    for call, given in calls:
        parts = [[one[:, rows] if one.ndim == 3 or one is seen else one[rows] for one in given] for rows in CUTS]
        torch.testing.assert_close(torch.cat([call(*part) for part in parts]), call(*given))


CUTS = (slice(0, 1), slice(1, 20), slice(20, 50))
