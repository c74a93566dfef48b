"""What every score of `steelyard.selectors` has in common: a finite number a sample, and no graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from steelyard import selectors
from tests.contracts.pool import Pool, as_arrays, pool, reads, refuses_what_is_not_finite, taken

NET = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()


def net(inputs: Tensor) -> Tensor:
    """Three logits of five features, in the inputs' type."""
    return NET.to(inputs.dtype)(inputs)


SCORES: dict[str, Callable[[Any], Tensor]] = {
    "aum": lambda m: selectors.aum(m["epochs"], m["labels"]),
    "bald": lambda m: selectors.bald(m["draws"]),
    "consensus_kl": lambda m: selectors.consensus_kl(m["draws"]),
    "deep_gini": lambda m: selectors.deep_gini(m["probabilities"]),
    "density_weighted": lambda m: selectors.density_weighted(m["score"], m["embeddings"]),
    "dfal": lambda m: selectors.dfal(net, m["hidden"], steps=5),
    "dropout_entropy": lambda m: selectors.dropout_entropy(m["draws"]),
    "el2n": lambda m: selectors.el2n(m["probabilities"], m["labels"]),
    "entropy": lambda m: selectors.entropy(m["probabilities"]),
    "epig": lambda m: selectors.epig(m["draws"], m["target_draws"]),
    "expected_gradient_length": lambda m: selectors.expected_gradient_length(m["probabilities"], m["embeddings"]),
    "expected_input_gradient_length": lambda m: selectors.expected_input_gradient_length(net, m["hidden"]),
    "forgetting_events": lambda m: selectors.forgetting_events(m["predictions"], m["labels"]),
    "gradient_norm": lambda m: selectors.gradient_norm(m["probabilities"], m["embeddings"], m["labels"]),
    "knn_shapley": lambda m: selectors.knn_shapley(
        m["embeddings"], m["labels"], m["targets"], m["target_labels"], neighbours=3
    ),
    "least_confidence": lambda m: selectors.least_confidence(m["probabilities"]),
    "margin": lambda m: selectors.margin(m["probabilities"]),
    "mean_confidence": lambda m: selectors.mean_confidence(m["draws"], m["labels"]),
    "normalised_margin": lambda m: selectors.normalised_margin(m["probabilities"], m["labels"]),
    "rank_disagreement": lambda m: selectors.rank_disagreement(m["losses"]),
    "self_confidence": lambda m: selectors.self_confidence(m["probabilities"], m["labels"]),
    "self_influence": lambda m: selectors.self_influence(m["gradients_of_steps"], m["embeddings_of_steps"], m["rates"]),
    "tracin": lambda m: selectors.tracin(
        m["gradients_of_steps"],
        m["embeddings_of_steps"],
        m["target_steps"],
        m["target_embeddings_of_steps"],
        m["rates"],
    ),
    "typicality": lambda m: selectors.typicality(m["embeddings"], neighbours=4),
    "variability": lambda m: selectors.variability(m["draws"], m["labels"]),
    "vote_entropy": lambda m: selectors.vote_entropy(m["draws"]),
}
EXACT = {"rank_disagreement"}  # ranks, in float64 whatever the losses are in
OF_A_MODEL = ("dfal", "expected_input_gradient_length")


def test_every_score_is_here() -> None:
    assert set(SCORES) == {name for name in selectors.DIRECTIONS if hasattr(selectors, name)}


@pytest.mark.parametrize("name", SCORES)
def test_one_finite_number_a_sample(name: str) -> None:
    found = SCORES[name](pool())
    assert found.shape == (24,)
    assert found.is_floating_point()
    assert found.isfinite().all()
    assert found.std() > 0  # of this pool no score is constant


@pytest.mark.parametrize("name", SCORES)
def test_the_order_of_the_samples_does_not_matter(name: str) -> None:
    samples = pool()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(SCORES[name](taken(samples, order)), SCORES[name](samples)[order])


@pytest.mark.parametrize("name", SCORES)
def test_both_precisions_agree_and_each_gives_its_own(name: str) -> None:
    exact, rounded = SCORES[name](pool()), SCORES[name](pool(dtype=torch.float32))
    if name not in EXACT and any(pool()[read].is_floating_point() for read in reads(SCORES[name], pool())):
        assert (exact.dtype, rounded.dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(rounded.double(), exact.double(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", sorted(set(SCORES) - set(OF_A_MODEL)))
def test_half_precision_is_promoted(name: str) -> None:
    samples = {k: v.float() if v.is_floating_point() else v for k, v in pool(dtype=torch.bfloat16).items()}
    for key in ("probabilities", "draws", "target_draws"):  # rounded, they do not sum to one
        samples[key] = samples[key] / samples[key].sum(-1, keepdim=True)
    halves = {k: v.bfloat16() if v.is_floating_point() else v for k, v in samples.items()}
    found = SCORES[name](halves)
    assert found.dtype == (torch.float64 if name in EXACT else torch.float32)
    torch.testing.assert_close(found.float(), SCORES[name](samples).float(), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", SCORES)
def test_inputs_stay_as_they_are_and_the_score_has_no_graph(name: str) -> None:
    samples: Pool = pool()
    leaves = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in samples.items()}
    assert not SCORES[name](leaves).requires_grad
    assert all(torch.equal(leaves[key], value) for key, value in samples.items())


@pytest.mark.parametrize("name", sorted(set(SCORES) - set(OF_A_MODEL)))
def test_arrays_are_taken(name: str) -> None:
    torch.testing.assert_close(SCORES[name](as_arrays(pool())), SCORES[name](pool()), rtol=0, atol=0)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("name", SCORES)
def test_what_is_not_finite_is_refused(name: str) -> None:
    refuses_what_is_not_finite(SCORES[name], pool())


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("name", SCORES)
def test_a_pool_without_samples_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"is empty|at least|must be"):
        SCORES[name](taken(pool(), torch.arange(0)))


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("name", [n for n in SCORES if "labels" in reads(SCORES[n], pool())])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.full((24,), 3), "labels must be in 0 .. 2"),
        (torch.zeros(23, dtype=torch.long), "23"),
        (torch.zeros(24), "labels"),
    ],
)
def test_labels_that_are_none_are_refused(name: str, wrong: Tensor, message: str) -> None:
    if name in ("forgetting_events", "knn_shapley") and wrong.max() == 3:
        return  # they know no number of classes
    with pytest.raises((ValueError, TypeError), match=message):
        SCORES[name]({**pool(), "labels": wrong})
