"""KNN-Shapley against all subsets, TracIn against gradients by autograd."""

from __future__ import annotations

import sys
from itertools import combinations
from math import comb

import pytest
import torch

from steelyard.selectors import cross_entropy_gradients, knn_shapley, self_influence, tracin
from tests.selectors.pools import generator, pool, squared_distances


def value(members: tuple[int, ...], distances, right, neighbours: int) -> float:
    nearest = sorted(members, key=lambda i: (distances[i], i))[:neighbours]
    return sum(right[i] for i in nearest) / neighbours


def brute_shapley(distances, right, neighbours: int) -> list[float]:
    n = len(distances)
    found = []
    for i in range(n):
        others = [j for j in range(n) if j != i]
        total = 0.0
        for size in range(n):
            for members in combinations(others, size):
                gain = value((*members, i), distances, right, neighbours) - value(members, distances, right, neighbours)
                total += gain / comb(n - 1, size)
        found.append(total / n)
    return found


@pytest.mark.parametrize("neighbours", [1, 2, 3, 6, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapley_values_by_all_subsets(neighbours, dtype) -> None:
    _, h = pool(10)
    labels = torch.randint(0, 2, (10,), generator=generator(1))
    train, aims = h[:7], h[7:]
    expected = torch.zeros(7, dtype=torch.float64)
    for distances, label in zip(squared_distances(aims, train).tolist(), labels[7:].tolist(), strict=True):
        right = [float(y == label) for y in labels[:7].tolist()]
        expected += torch.tensor(brute_shapley(distances, right, neighbours), dtype=torch.float64) / 3
    found = knn_shapley(train.to(dtype), labels[:7], aims.to(dtype), labels[7:], neighbours=neighbours)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)


def test_shapley_values_sum_to_the_accuracy_and_take_blocks(monkeypatch) -> None:
    h = torch.randn(80, 3, generator=generator(), dtype=torch.float64)
    labels = (h[:, 0] > 0).long()
    train, y, aims, z = h[:60], labels[:60], h[60:], labels[60:]
    found = knn_shapley(train, y, aims, z, neighbours=5)
    nearest = squared_distances(aims, train).argsort(dim=1)[:, :5]
    accuracy = (y[nearest] == z[:, None]).double().mean()
    torch.testing.assert_close(found.sum(), accuracy)
    monkeypatch.setattr(sys.modules["steelyard.selectors.knn_shapley"], "_BLOCK", 100)
    torch.testing.assert_close(knn_shapley(train, y, aims, z, neighbours=5), found)


def test_wrong_labels_have_low_shapley_values() -> None:
    h = torch.cat([torch.randn(30, 2, generator=generator()), torch.randn(30, 2, generator=generator()) + 6])
    labels = torch.arange(60) // 30
    given = labels.clone()
    given[:3] = 1
    found = knn_shapley(h, given, h + 0.1, labels)
    assert set(found.argsort()[:3].tolist()) == {0, 1, 2}
    assert float(found[:3].max()) < 0


def checkpoints(n: int = 7, classes: int = 3, features: int = 4, seed: int = 0):
    """Two output layers, and what they make of embeddings of their own."""
    source = generator(seed)
    h = torch.randn(2, n, features, generator=source, dtype=torch.float64)
    weights = torch.randn(2, classes, features, generator=generator(9), dtype=torch.float64)
    labels = torch.randint(0, classes, (n,), generator=source)
    return h, weights, labels, torch.einsum("cnf,ckf->cnk", h, weights).softmax(2)


def gradient(weight: torch.Tensor, h: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    weight = weight.clone().requires_grad_()
    return torch.autograd.grad(torch.nn.functional.cross_entropy(h @ weight.T, labels), weight)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tracin_is_the_product_of_gradients(dtype) -> None:
    h, weights, labels, p = checkpoints()
    g, _, aims, q = checkpoints(n=5, seed=1)
    rates = torch.tensor([0.1, 0.02], dtype=torch.float64)
    expected, own = torch.zeros(7, dtype=torch.float64), torch.zeros(7, dtype=torch.float64)
    for c in range(2):
        target = gradient(weights[c], g[c], aims)
        for i in range(7):
            sample = gradient(weights[c], h[c, i : i + 1], labels[i : i + 1])
            expected[i] += rates[c] * (sample * target).sum()
            own[i] += rates[c] * sample.square().sum()
    a, b = cross_entropy_gradients(p.to(dtype), labels), cross_entropy_gradients(q.to(dtype), aims)
    found = tracin(a, h.to(dtype), b, g.to(dtype), rates)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(self_influence(a, h.to(dtype), rates).double(), own, rtol=1e-4, atol=1e-5)
    order = torch.randperm(7, generator=generator(2))
    torch.testing.assert_close(tracin(a[:, order], h[:, order].to(dtype), b, g.to(dtype), rates), found[order])


def test_samples_come_in_pieces(monkeypatch) -> None:
    h, _, labels, p = checkpoints()
    a, rates = cross_entropy_gradients(p, labels), torch.tensor([0.1, 0.02], dtype=torch.float64)
    whole, own = tracin(a, h, a, h, rates), self_influence(a, h, rates)
    monkeypatch.setattr(sys.modules["steelyard.selectors.tracin"], "_ROWS", 3)
    torch.testing.assert_close(tracin(a, h, a, h, rates), whole)
    torch.testing.assert_close(self_influence(a, h, rates), own)


def test_the_gradient_of_a_confident_prediction_keeps_its_digits() -> None:
    q = torch.tensor([1e-9, 4e-8])
    found = cross_entropy_gradients(torch.stack([1 - q, q], 1), torch.zeros(2).long())
    torch.testing.assert_close(found, torch.stack([-q, q], 1), rtol=1e-6, atol=0)


A, H, RATE = torch.zeros(1, 2, 3), torch.zeros(1, 2, 4), torch.ones(1)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tracin(A, H[:, :1], A, H, RATE), r"gradients \(1, 2, 3\), embeddings \(1, 1, 4\) and rates"),
        (lambda: tracin(A, H, A, H, torch.ones(2)), r"rates \(2,\) must have the same checkpoints"),
        (lambda: tracin(A, H, A[:, :, :2], H, RATE), "the targets must have the checkpoints, classes and features"),
        (lambda: tracin(A, H, A, H, -RATE), "rates must be >= 0, the least is -1"),
        (lambda: knn_shapley(H[0], [0, 1], H[0], [0]), "target_labels has 1 entries, but n is 2"),
        (lambda: knn_shapley(H[0], [0, 1], A[0], [0, 1]), "target_embeddings has 3 features, but embeddings has 4"),
        (lambda: knn_shapley(H[0], [0, 1], H[0], [0, 1], neighbours=0), "neighbours must be >= 1"),
    ],
    ids=["samples", "rates", "targets", "negative", "targets' labels", "features", "K"],
)
def test_refusals(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
