"""MCP and DRE by hand."""

from __future__ import annotations

import math
from collections import Counter

import torch

from steelyard.selectors import dre, entropy, mcp
from tests.selectors.pools import generator, pool


def test_mcp_by_hand() -> None:
    p = torch.tensor(
        [
            [0.60, 0.30, 0.10],  # area 0-1, 0.5
            [0.50, 0.45, 0.05],  # area 0-1, 0.9
            [0.30, 0.60, 0.10],  # area 1-0, 0.5
            [0.10, 0.50, 0.40],  # area 1-2, 0.8
            [0.48, 0.36, 0.16],  # area 0-1, 0.75
        ]
    )
    assert mcp(p, 5).tolist() == [1, 3, 2, 4, 0]
    assert mcp(p, 2).tolist() == [1, 3]


def test_mcp_is_even_over_areas() -> None:
    p, _ = pool(500)
    areas = p.topk(2, 1).indices @ torch.tensor([4, 1])
    sizes = Counter(areas.tolist())
    picked = mcp(p, 60)
    taken = Counter(areas[picked].tolist())
    most = max(taken.values())
    assert all(taken[area] >= min(most - 1, size) for area, size in sizes.items())
    ratio = p.topk(2, 1).values[:, 1] / p.topk(2, 1).values[:, 0]
    for area in taken:
        left = set((areas == area).nonzero()[:, 0].tolist()) - set(picked.tolist())
        least = min(float(ratio[i]) for i in picked.tolist() if int(areas[i]) == area)
        assert all(float(ratio[i]) <= least for i in left)


def test_dre_keeps_the_histogram_less_its_low_end() -> None:
    p, _ = pool(997)
    bits = entropy(p, base=2)
    k, bins = 200, 50
    edges = torch.linspace(float(bits.min()), float(bits.max()), bins + 1, dtype=torch.float64)
    bin_of = (torch.bucketize(bits, edges, right=True) - 1).clamp(0, bins - 1)
    shares = torch.bincount(bin_of, minlength=bins)
    quota = [math.ceil(int(size) * k / 997) for size in shares]
    expected, left = [0] * bins, k
    for i in reversed(range(bins)):
        expected[i] = min(quota[i], left)
        left -= expected[i]
    picked = dre(p, k, generator=generator())
    found = torch.bincount(bin_of[picked], minlength=bins).tolist()
    assert sum(abs(a - b) for a, b in zip(found, expected, strict=True)) <= 2  # an entropy on an edge, in rounding
    assert expected[0] < quota[0]  # the low end is cut
    order = bin_of[picked]
    assert (order[1:] <= order[:-1] + 1).all()


def test_dre_of_one_entropy_is_uniform() -> None:
    source = generator(1)
    counts = Counter(i for _ in range(400) for i in dre(torch.full((8, 2), 0.5), 4, generator=source).tolist())
    # Each is binomial(400, 1/2): six standard deviations are 60, and Hoeffding gives 8 * 2 exp(-18) < 3e-7 for all.
    assert all(abs(counts[i] - 200) < 60 for i in range(8))


def test_dre_within_a_bin_is_random() -> None:
    p, _ = pool(100)
    assert dre(p, 30, generator=generator(1)).tolist() != dre(p, 30, generator=generator(2)).tolist()
