"""k-means, TypiClust and ProbCover against textbook versions."""

from __future__ import annotations

import pytest
import torch

from steelyard.selectors import kmeans, prob_cover, pure_radius, typicality, typiclust
from tests.selectors.pools import generator, pool, squared_distances


def blobs(sizes: tuple[int, ...] = (12, 8, 5), dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Well separated clusters of these sizes: 100 apart, spread 1."""
    cluster_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    noise = torch.randn(len(cluster_of), 3, generator=generator(), dtype=torch.float64)
    return (noise + 100 * cluster_of[:, None]).to(dtype), cluster_of


def same_partition(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a[:, None] == a, b[:, None] == b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kmeans_finds_clusters_and_ends_where_no_sample_is_nearer_elsewhere(dtype) -> None:
    h, cluster_of = blobs(dtype=dtype)
    assert same_partition(kmeans(h, 3, generator=generator()), cluster_of)
    _, h = pool(200)
    found = kmeans(h, 7, generator=generator(1), rounds=1000)
    assert sorted(found.unique().tolist()) == list(range(int(found.max()) + 1))
    means = torch.stack([h[found == c].mean(0) for c in range(7)])
    assert torch.equal(squared_distances(h, means).argmin(1), found)
    assert torch.equal(found, kmeans(h, 7, generator=generator(1), rounds=1000))


def test_kmeans_of_duplicates_has_no_empty_cluster() -> None:
    h = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    assert kmeans(h, 4, generator=generator()).unique().tolist() == [0, 1]


@pytest.mark.parametrize("neighbours", [1, 3, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_typicality_against_all_pairs(neighbours, dtype) -> None:
    _, h = pool(30)
    distances = squared_distances(h, h).sqrt().fill_diagonal_(torch.inf)
    nearest = distances.sort(dim=1).values[:, : min(neighbours, 29)]
    found = typicality(h.to(dtype), neighbours=neighbours)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), 1 / nearest.mean(1), rtol=1e-4, atol=0)
    order = torch.randperm(30, generator=generator(1))
    torch.testing.assert_close(typicality(h[order], neighbours=neighbours), typicality(h, neighbours=neighbours)[order])


def test_typicality_of_duplicates_is_finite() -> None:
    assert typicality(torch.zeros(3, 2)).tolist() == [torch.finfo(torch.float32).max] * 3


def most_typical(h: torch.Tensor, members: list[int]) -> list[int]:
    """Members by the mean distance to up to 20 others of the cluster."""
    mean = {}
    for i in members:
        others = sorted(float((h[i] - h[j]).norm()) for j in members if j != i)[:20]
        mean[i] = sum(others) / len(others)
    return sorted(members, key=mean.__getitem__)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_typiclust_takes_the_most_typical_of_the_largest_clusters(seed) -> None:
    h, cluster_of = blobs((12, 8, 6))
    by_cluster = [most_typical(h, (cluster_of == c).nonzero()[:, 0].tolist()) for c in range(3)]
    assert typiclust(h, 3, generator=generator(seed)).tolist() == [ranked[0] for ranked in by_cluster]
    order = torch.randperm(len(h), generator=generator(9))
    assert order[typiclust(h[order], 3, generator=generator(seed))].tolist() == [ranked[0] for ranked in by_cluster]


def test_typiclust_leaves_labelled_clusters_for_last() -> None:
    h, cluster_of = blobs((12, 8, 6))
    picked = typiclust(h, 2, generator=generator(), labelled=h[:1] + 0.01, most_clusters=3)
    assert cluster_of[picked].tolist() == [1, 2]
    again = typiclust(h, 5, generator=generator(), labelled=h[:1] + 0.01, most_clusters=3)
    assert cluster_of[again].tolist() == [1, 2, 0, 1, 2]  # each has one label by the third pick; the largest first


def test_typiclust_takes_small_clusters_last_and_the_whole_pool_at_the_end() -> None:
    h, cluster_of = blobs((12, 8, 2))
    assert cluster_of[typiclust(h, 4, generator=generator(), most_clusters=3)].tolist() == [0, 1, 0, 1]
    assert cluster_of[typiclust(h, 3, generator=generator(), most_clusters=3, small=0)].tolist() == [0, 1, 2]
    assert sorted(typiclust(h, 22, generator=generator(), most_clusters=3).tolist()) == list(range(22))


def brute_cover(h: torch.Tensor, k: int, radius: float, labelled: torch.Tensor) -> list[int]:
    near = squared_distances(h, h).sqrt() <= radius
    covered = (squared_distances(h, labelled).sqrt() <= radius).any(1)
    picked: list[int] = []
    while len(picked) < k:
        gains = (near & ~covered).sum(1)
        best = int(gains.argmax())
        if not gains[best]:
            return picked + [i for i in range(len(h)) if i not in picked][: k - len(picked)]
        picked.append(best)
        covered |= near[best]
    return picked


@pytest.mark.parametrize("radius", [0.0, 0.3, 1.0, 2.0, 50.0])
@pytest.mark.parametrize("known", [0, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prob_cover_is_the_greedy_cover(radius, known, dtype) -> None:
    _, h = pool(80)
    labelled = h[:known]
    picked = prob_cover(h[known:].to(dtype), 20, radius=radius, labelled=labelled.to(dtype))
    assert picked.tolist() == brute_cover(h[known:], 20, radius, labelled)


def test_prob_cover_of_a_permuted_pool() -> None:
    """Without ties the order of the pool does not matter."""
    h = torch.tensor([0.0, 1.0, 1.5, 9.9, 10.4, 10.8, 11.1, 30.0, 30.5, 31.0])[:, None]
    order = torch.randperm(len(h), generator=generator(1))
    assert h[prob_cover(h, 2, radius=0.8), 0].tolist() == h[order][prob_cover(h[order], 2, radius=0.8), 0].tolist()


def test_once_all_is_covered_the_rest_is_drawn() -> None:
    h = torch.zeros(9, 1)
    assert prob_cover(h, 3, radius=1.0).tolist() == [0, 1, 2]
    drawn = {tuple(prob_cover(h, 3, radius=1.0, generator=generator(seed)).tolist()) for seed in range(5)}
    assert len(drawn) > 1
    assert all(row[0] == 0 and len(set(row)) == 3 for row in drawn)


@pytest.mark.parametrize("purity", [0.3, 0.75, 0.95, 1.0])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e20])
def test_pure_radius_is_the_greatest(purity, size) -> None:
    h = torch.randn(60, 3, generator=generator(1), dtype=torch.float64)
    clusters = torch.randint(0, 3, (60,), generator=generator(2))
    distances, other = squared_distances(h, h).sqrt(), clusters[:, None] != clusters

    def share(radius: float) -> float:
        return float((~((distances <= radius) & other).any(1)).double().mean())

    radius = pure_radius((h * size).to(h.dtype), clusters, purity=purity) / size
    assert share(radius * (1 - 1e-9)) >= purity
    assert share(radius * (1 + 1e-6)) < purity


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kmeans(torch.ones(2, 1), 3, generator=generator()), r"clusters must be in \[1, 2\], got 3"),
        (lambda: typicality(torch.ones(1, 1)), "embeddings has 1 sample; a neighbour needs at least 2"),
        (lambda: typiclust(torch.ones(2, 1), 1, generator=generator(), neighbours=0), "neighbours must be >= 1"),
        (lambda: prob_cover(torch.ones(2, 1), 1, radius=-1.0), "radius must be finite and >= 0"),
        (lambda: prob_cover(torch.ones(2, 1), 1, radius=1.0, labelled=torch.ones(1, 2)), "labelled has 2 features"),
        (lambda: pure_radius(torch.ones(2, 1), torch.zeros(2).long()), "clusters are all the same"),
        (lambda: pure_radius(torch.ones(2, 1), torch.arange(2), purity=0.0), r"purity must be finite and in \(0, 1\]"),
    ],
    ids=["clusters", "one sample", "neighbours", "radius", "features", "one cluster", "purity"],
)
def test_refusals(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
