"""What every selection has in common: k different samples, the same ones for the same seed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from steelyard import selectors
from tests.contracts.pool import as_arrays, generator, pool, refuses_what_is_not_finite, taken

Pick = Callable[[Any, int, torch.Generator], Tensor]

SELECTIONS: dict[str, Pick] = {
    "badge": lambda m, k, g: selectors.badge(m["probabilities"], m["embeddings"], k, generator=g),
    "bait": lambda m, k, g: selectors.bait(m["probabilities"], m["embeddings"], k),
    "batch_bald": lambda m, k, g: selectors.batch_bald(m["draws"], k, generator=g),
    "craig": lambda m, k, g: selectors.craig(m["hidden"], k).index,
    "dre": lambda m, k, g: selectors.dre(m["probabilities"], k, generator=g),
    "grad_match": lambda m, k, g: selectors.grad_match(m["hidden"], k).index,
    "k_center": lambda m, k, g: selectors.k_center(m["embeddings"], k, labelled=m["labelled"]),
    "kmeans_plus_plus": lambda m, k, g: selectors.kmeans_plus_plus(m["embeddings"], k, generator=g),
    "lhd": lambda m, k, g: selectors.lhd(
        m["logits"], m["other_logits"], m["hidden"], m["other_hidden"], k, generator=g
    ),
    "mcp": lambda m, k, g: selectors.mcp(m["probabilities"], k),
    "power_sampling": lambda m, k, g: selectors.power_sampling(m["score"], k, generator=g),
    "prob_cover": lambda m, k, g: selectors.prob_cover(m["embeddings"], k, radius=0.5),
    "softmax_sampling": lambda m, k, g: selectors.softmax_sampling(m["score"], k, generator=g),
    "softrank_sampling": lambda m, k, g: selectors.softrank_sampling(m["score"], k, generator=g),
    "top_k": lambda m, k, g: selectors.top_k(m["score"], k),
    "typiclust": lambda m, k, g: selectors.typiclust(m["embeddings"], k, generator=g, neighbours=4),
}
OF_NO_TENSOR = {"partitioned", "random_selection"}
"""They take no samples, but their number: `tests/selectors/test_partition.py` and `test_pick.py`."""
DRAWN = {
    *("badge", "dre", "kmeans_plus_plus", "lhd", "power_sampling", "softmax_sampling", "softrank_sampling"),
    *("typiclust", "batch_bald"),
}
"""What draws: another seed may pick others. (BatchBALD draws configurations, and only for many picks.)"""


def test_every_selection_is_here() -> None:
    functions = {name: getattr(selectors, name) for name in selectors.__all__}
    takes_k = {
        name
        for name, member in functions.items()
        if inspect.isfunction(member) and "k" in inspect.signature(member).parameters
    }
    assert set(SELECTIONS) == takes_k - OF_NO_TENSOR


@pytest.mark.parametrize("k", [1, 5, 24])
@pytest.mark.parametrize("name", SELECTIONS)
def test_k_different_samples(name: str, k: int) -> None:
    found = SELECTIONS[name](pool(), k, generator())
    assert found.dtype == torch.int64
    assert found.shape == (k,)
    assert len(set(found.tolist())) == k
    assert 0 <= int(found.min()) <= int(found.max()) < 24


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_seed_gives_the_same_picks(name: str) -> None:
    assert torch.equal(SELECTIONS[name](pool(), 6, generator(3)), SELECTIONS[name](pool(), 6, generator(3)))


@pytest.mark.parametrize("name", sorted(DRAWN - {"batch_bald"}))
def test_another_seed_gives_others(name: str) -> None:
    found = {tuple(SELECTIONS[name](pool(), 6, generator(seed)).tolist()) for seed in range(20)}
    assert len(found) > 1


@pytest.mark.parametrize(
    "name", sorted(set(SELECTIONS) - DRAWN - {"prob_cover"})
)  # which counts: ties by the lowest index
def test_the_order_of_the_samples_does_not_matter(name: str) -> None:
    order = torch.randperm(24, generator=generator(1))
    found = SELECTIONS[name](taken(pool(), order), 6, generator())
    assert torch.equal(order[found], SELECTIONS[name](pool(), 6, generator()))


@pytest.mark.parametrize("name", sorted(set(SELECTIONS) - DRAWN))
def test_a_pick_is_the_start_of_a_longer_one(name: str) -> None:
    if name in ("bait", "grad_match"):
        pytest.skip("BAIT takes back, Grad-Match solves for all weights together")
    assert torch.equal(SELECTIONS[name](pool(), 4, generator()), SELECTIONS[name](pool(), 9, generator())[:4])


@pytest.mark.parametrize("name", SELECTIONS)
def test_both_precisions_pick_the_same(name: str) -> None:
    exact, rounded = pool(), pool(dtype=torch.float32)
    assert torch.equal(SELECTIONS[name](exact, 4, generator()), SELECTIONS[name](rounded, 4, generator()))


@pytest.mark.parametrize("name", SELECTIONS)
def test_half_precision_is_taken(name: str) -> None:
    picked = SELECTIONS[name](pool(dtype=torch.bfloat16), 6, generator())
    assert len(set(picked.tolist())) == 6


@pytest.mark.parametrize("name", SELECTIONS)
def test_arrays_are_taken(name: str) -> None:
    assert torch.equal(SELECTIONS[name](as_arrays(pool()), 6, generator()), SELECTIONS[name](pool(), 6, generator()))


@pytest.mark.parametrize("name", SELECTIONS)
def test_inputs_stay_as_they_are(name: str) -> None:
    samples = pool()
    SELECTIONS[name](samples, 6, generator())
    assert all(torch.equal(value, pool()[key]) for key, value in samples.items())


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("name", SELECTIONS)
def test_what_is_not_finite_is_refused(name: str) -> None:
    refuses_what_is_not_finite(lambda m: SELECTIONS[name](m, 2, generator()), pool())


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize(
    ("k", "message"), [(25, "k is 25, but the pool has only 24"), (0, "k must be >= 1"), (-2, "k")]
)
def test_a_k_that_there_is_not_is_refused(name: str, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SELECTIONS[name](pool(), k, generator())


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("k", [2.5, "2", None, True])
def test_a_k_that_is_no_number_is_refused(name: str, k: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="k must be"):
        SELECTIONS[name](pool(), k, generator())


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("name", SELECTIONS)
def test_a_pool_without_samples_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"is empty|k is 1"):
        SELECTIONS[name](taken(pool(), torch.arange(0)), 1, generator())
