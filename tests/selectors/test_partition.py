"""A pool in parts."""

from __future__ import annotations

import jaxtyping
import pytest
import torch

from steelyard.selectors import k_center, kmeans_plus_plus, partitioned
from tests.selectors.pools import generator, pool


@pytest.mark.parametrize(("n", "k", "parts"), [(10, 10, 3), (10, 2, 4), (11, 7, 4), (7, 7, 7), (100, 30, 1)])
def test_quotas(n, k, parts) -> None:
    sizes = []

    def select(index, count):
        assert (index[1:] > index[:-1]).all()
        sizes.append((len(index), count))
        return torch.arange(count)

    picked = partitioned(select, n, k, parts=parts, generator=generator())
    assert picked.unique().numel() == picked.numel() == k
    assert 0 <= int(picked.min()) <= int(picked.max()) < n
    assert all(count in (k // parts, k // parts + 1) for _, count in sizes)
    assert all(size in (n // parts, n // parts + 1) for size, _ in sizes)


def test_one_part_is_the_selection_itself() -> None:
    _, h = pool(50)
    picked = partitioned(lambda index, k: k_center(h[index], k), 50, 9, parts=1, generator=generator())
    assert picked.tolist() == k_center(h, 9).tolist()


def test_a_million_samples_in_parts() -> None:
    def select(index, count):  # the part's embeddings are made here: the whole pool's never exist
        features = torch.stack([torch.sin(index * f) for f in (0.1, 0.7, 1.3)], dim=1)
        return kmeans_plus_plus(features, count, generator=source)

    source = generator(1)
    picked = partitioned(select, 1_000_000, 40, parts=20, generator=generator())
    assert picked.unique().numel() == 40


@pytest.mark.parametrize(
    ("select", "message"),
    [
        (lambda index, k: torch.zeros(k, dtype=torch.long), "different positions"),
        (lambda index, k: torch.arange(k + 1), "different positions"),
        (lambda index, k: torch.arange(k) + len(index), "positions in 0 .. 4 of its part"),
    ],
)
def test_bad_selections(monkeypatch, select, message) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        partitioned(select, 10, 4, parts=2, generator=generator())
