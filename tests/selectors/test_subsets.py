"""BAIT, GradMatch and CRAIG against versions that form everything."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from steelyard.selectors import bait, craig, cross_entropy_gradients, grad_match
from tests.selectors.pools import generator, pool, squared_distances


def information(p: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """The Fisher information of each sample, ``(n, D, D)``."""
    logits = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    hidden = h[:, :, None] * h[:, None]
    return torch.stack([torch.kron(a, b) for a, b in zip(logits, hidden, strict=True)])


def brute_bait(fishers: torch.Tensor, known: torch.Tensor, k: int, ridge: float, most: int) -> list[int]:
    everything = torch.cat([fishers, known])
    mean = everything.mean(0)
    start = ridge * torch.eye(len(mean), dtype=mean.dtype) + known.sum(0)

    def left(batch: list[int]) -> float:
        return float((torch.linalg.inv(start + fishers[batch].sum(0)) @ mean).trace())

    picked: list[int] = []
    while len(picked) < most:
        picked.append(min((i for i in range(len(fishers)) if i not in picked), key=lambda i: left([*picked, i])))
    while len(picked) > k:
        picked.remove(min(picked, key=lambda i: left([j for j in picked if j != i])))
    return picked


@pytest.mark.parametrize("known", [0, 3])
@pytest.mark.parametrize("oversample", [1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bait_is_greedy_in_the_trace(known, oversample, dtype) -> None:
    h = torch.randn(15, 3, generator=generator(4), dtype=torch.float64)
    p, _ = pool(15, classes=3)
    p, h = p.to(dtype), h.to(dtype)
    fishers = information(p.double(), h.double())
    found = bait(
        p[known:],
        h[known:],
        4,
        labelled_probabilities=p[:known],
        labelled_embeddings=h[:known],
        ridge=0.1,
        oversample=oversample,
    )
    assert found.tolist() == brute_bait(fishers[known:], fishers[:known], 4, 0.1, round(4 * oversample))


def test_bait_in_blocks_and_of_the_whole(monkeypatch) -> None:
    p, _ = pool(12, classes=3)
    h = torch.randn(12, 2, generator=generator(1), dtype=torch.float64)
    whole = bait(p, h, 5, ridge=0.1)
    monkeypatch.setattr(sys.modules["steelyard.selectors.bait"], "_BLOCK", 30)
    assert bait(p, h, 5, ridge=0.1).tolist() == whole.tolist()
    assert sorted(bait(p, h, 12).tolist()) == list(range(12))
    certain = torch.tensor([[1.0, 0.0]]).repeat(4, 1)  # no information in any
    assert bait(certain, torch.ones(4, 2), 3).tolist() == [0, 1, 2]


def sample_gradients(n: int = 40, features: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, features, generator=generator(seed), dtype=torch.float64) + 0.5


def error(g: torch.Tensor, index: list[int], weight: torch.Tensor, aim: torch.Tensor, ridge: float) -> float:
    return float((weight @ g[index] - aim).square().sum() + ridge * weight.square().sum())


def brute_match(g: torch.Tensor, k: int, aim: torch.Tensor, ridge: float) -> tuple[list[int], np.ndarray]:
    """Pick the steepest, then all weights by SciPy's nonnegative least squares."""
    picked: list[int] = []
    weight = np.zeros(0)
    while len(picked) < k:
        residual = aim - torch.from_numpy(weight) @ g[picked] if picked else aim
        slope = g @ residual
        slope[picked] = -torch.inf
        picked.append(int(slope.argmax()))
        rows = torch.cat([g[picked].T, ridge**0.5 * torch.eye(len(picked), dtype=g.dtype)])
        weight, _ = nnls(rows.numpy(), torch.cat([aim, aim.new_zeros(len(picked))]).numpy())
    return picked, weight


@pytest.mark.parametrize("ridge", [0.1, 0.5, 10.0])
def test_grad_match_takes_the_steepest_and_fits_again(ridge) -> None:
    g = sample_gradients()
    found = grad_match(g, 4, ridge=ridge)
    picked, weight = brute_match(g, 4, g.sum(0), ridge)
    assert (weight > 0).all()  # none leaves, so the two ways are one
    assert found.index.tolist() == picked
    np.testing.assert_allclose(found.weight.numpy(), weight, rtol=1e-8)
    order = torch.randperm(40, generator=generator(2))
    permuted = grad_match(g[order], 4, ridge=ridge)
    assert order[permuted.index].tolist() == picked
    torch.testing.assert_close(permuted.weight, found.weight)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_with_all_samples_it_is_nonnegative_least_squares(seed, ridge) -> None:
    g = torch.randn(8, 12, generator=generator(seed), dtype=torch.float64)  # of both signs: weights leave
    aim = torch.randn(12, generator=generator(seed + 50), dtype=torch.float64)
    found = grad_match(g, 8, target=aim, ridge=ridge)
    rows = torch.cat([g.T, ridge**0.5 * torch.eye(8, dtype=g.dtype)]).numpy()
    weight, residual = nnls(rows, torch.cat([aim, aim.new_zeros(8)]).numpy())
    assert sorted(found.index.tolist()) == list(range(8))
    np.testing.assert_allclose(found.weight[found.index.argsort()].numpy(), weight, atol=1e-8)
    assert error(g, found.index.tolist(), found.weight, aim, ridge) == pytest.approx(residual**2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grad_match_of_few_directions_leaves_the_rest_without_weight(dtype) -> None:
    g = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0], [-1.0, 0.0]], dtype=dtype)
    found = grad_match(g, 4, target=torch.tensor([2.0, 2.0]), ridge=0.0)
    assert found.weight.dtype == dtype
    assert sorted(found.index.tolist()) == [0, 1, 2, 3]
    torch.testing.assert_close(found.weight @ g[found.index], torch.tensor([2.0, 2.0], dtype=dtype))
    assert found.index.tolist()[:2] == [1, 0]
    assert found.weight.tolist()[2:] == [0.0, 0.0]
    assert grad_match(torch.zeros(3, 2), 2).weight.tolist() == [0.0, 0.0]


def test_more_samples_match_better() -> None:
    p, _ = pool(60)
    g = cross_entropy_gradients(p, torch.randint(0, 4, (60,), generator=generator(1)))
    errors = []
    for k in (1, 2, 4, 8):
        found = grad_match(g, k, ridge=1e-3)
        errors.append(error(g, found.index.tolist(), found.weight, g.sum(0), 1e-3))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-2 * errors[0]


def brute_craig(g: torch.Tensor, k: int) -> tuple[list[int], list[float]]:
    distances = squared_distances(g, g).sqrt()
    picked: list[int] = []
    while len(picked) < k:
        left = [i for i in range(len(g)) if i not in picked]
        picked.append(min(left, key=lambda i: float(distances[:, [*picked, i]].amin(1).sum())))
    owner = distances[:, picked].argmin(1)
    owner[picked] = torch.arange(k)
    return picked, torch.bincount(owner, minlength=k).double().tolist()


@pytest.mark.parametrize("k", [1, 2, 7, 12])
@pytest.mark.parametrize("seed", [0, 1])
def test_craig_is_greedy_in_the_facility_location(k, seed) -> None:
    g = sample_gradients(70, seed=seed)
    found = craig(g, k)
    picked, weight = brute_craig(g, k)
    assert found.index.tolist() == picked
    assert found.weight.tolist() == weight
    order = torch.randperm(70, generator=generator(3))
    assert order[craig(g[order], k).index].tolist() == picked


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_craig_covers_as_well_where_pairs_tie(dtype) -> None:
    """Of two samples far from all others either is as good, to rounding."""
    g = sample_gradients(70)
    distances = squared_distances(g, g).sqrt()
    found, (picked, _) = craig(g.to(dtype), 40), brute_craig(g, 40)
    assert found.weight.dtype == dtype
    left = [distances[:, batch].amin(1).sum() for batch in (found.index, picked)]
    torch.testing.assert_close(*left, rtol=1e-5, atol=0)


def test_craig_of_copies_weighs_them_once() -> None:
    g = torch.tensor([[0.0], [5.0]]).repeat_interleave(torch.tensor([7, 3]), dim=0)
    found = craig(g, 2)
    assert found.index.tolist() == [0, 7]
    assert found.weight.tolist() == [7.0, 3.0]
    rest = craig(g, 10)
    assert sorted(rest.index.tolist()) == list(range(10))
    assert float(rest.weight.sum()) == 10


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bait(torch.ones(2, 2) / 2, torch.ones(3, 1), 1), "probabilities has 2, embeddings has 3"),
        (lambda: bait(torch.ones(2, 2) / 2, torch.ones(2, 1), 1, ridge=0.0), "ridge must be finite and > 0"),
        (lambda: bait(torch.ones(2, 2) / 2, torch.ones(2, 1), 1, oversample=0.5), "oversample must be finite and >= 1"),
        (
            lambda: bait(torch.ones(2, 2) / 2, torch.ones(2, 1), 1, labelled_embeddings=torch.ones(1, 1)),
            "pass both labelled_probabilities and labelled_embeddings",
        ),
        (
            lambda: bait(
                torch.ones(2, 2) / 2,
                torch.ones(2, 1),
                1,
                labelled_probabilities=torch.ones(1, 2) / 2,
                labelled_embeddings=torch.ones(1, 3),
            ),
            "the labelled samples must have 2 classes and 1 features, got 2 and 3",
        ),
        (lambda: grad_match(torch.ones(2, 3), 1, target=torch.ones(2)), "target has 2 features, but gradients has 3"),
        (lambda: grad_match(torch.ones(2, 3), 1, ridge=-1.0), "ridge must be finite and >= 0"),
    ],
    ids=["n", "ridge", "oversample", "neither", "sizes", "target", "lambda"],
)
def test_refusals(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("scale", "ridge"), [(1e8, 1.0), (1.0, 1e-30), (1e5, 1e-3)])
def test_bait_refuses_embeddings_beside_which_the_ridge_is_lost(scale: float, ridge: float) -> None:
    seeded = torch.Generator().manual_seed(0)
    p, h = torch.rand(20, 3, generator=seeded).softmax(1), torch.randn(20, 4, generator=seeded)
    with pytest.raises(ValueError, match="swamps ridge = .*raise ridge, or scale the embeddings down"):
        bait(p, scale * h, 3, ridge=ridge)


def test_bait_knows_the_embeddings_by_their_size_beside_the_ridge_alone() -> None:
    seeded = torch.Generator().manual_seed(0)
    p, h = torch.rand(20, 3, generator=seeded).softmax(1), torch.randn(20, 4, generator=seeded)
    expected = bait(p, h.double(), 5, ridge=1e-6)
    assert torch.equal(bait(p, 1e3 * h.double(), 5, ridge=1.0), expected)
