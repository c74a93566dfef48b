"""Distances that are never materialised equal those that are, in the digits that seeding needs."""

from __future__ import annotations

import pytest
import torch

from steelyard.selectors._points import Points
from steelyard.selectors.badge import residual
from tests.selectors.pools import generator, gradient_embeddings, pool, squared_distances


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_factored_is_materialised(dtype, tolerance) -> None:
    p, h = pool(60)
    exact = squared_distances(gradient_embeddings(p, h), gradient_embeddings(p, h))
    points = Points.outer(residual(p).to(dtype), h.to(dtype))
    found = points.distances(points).double()
    scale = found.sum() / exact.sum()  # a power of two
    assert float(torch.log2(scale).sub(torch.log2(scale).round()).abs()) < 1e-4
    off_diagonal = ~torch.eye(60, dtype=torch.bool)
    relative = (found / scale - exact).abs()[off_diagonal] / exact[off_diagonal]
    assert float(relative.max()) < tolerance
    assert (found.diagonal() == 0).all()


@pytest.mark.parametrize("outer", [False, True])
def test_near_duplicates_keep_their_digits_in_float32(outer) -> None:
    # The expansion alone has an error of about 1e-7 of the norms; these distances are 1e-10 of them.
    source = generator(1)
    left = torch.rand(1, 3, generator=source).expand(8, 3) + 1e-5 * torch.rand(8, 3, generator=source)
    right = 100 + torch.rand(1, 20, generator=source).expand(8, 20) + 1e-3 * torch.rand(8, 20, generator=source)
    if outer:
        points = Points.outer(left, right)
        vectors = (left.double()[:, :, None] * right.double()[:, None]).flatten(1)
    else:
        (points,) = Points.rows(right)
        vectors = right.double()
    exact = squared_distances(vectors, vectors)
    found = points.distances(points).double()
    factor = found.sum() / exact.sum()
    off = ~torch.eye(8, dtype=torch.bool)
    assert float(((found / factor - exact).abs() / exact)[off].max()) < (1e-2 if outer else 1e-3)


@pytest.mark.parametrize("size", [1e-25, 1e-3, 1e25])
def test_scale_does_not_matter(size) -> None:
    _, h = pool(20, dtype=torch.float32)
    (points,), (scaled,) = Points.rows(h), Points.rows(h * size)
    ratio = scaled.distances(scaled).sum() / points.distances(points).sum()
    assert 0.2 < float(ratio) < 5
    torch.testing.assert_close(scaled.distances(scaled) / ratio, points.distances(points), rtol=1e-3, atol=1e-5)


def test_a_common_offset_makes_no_pair_near(monkeypatch) -> None:
    # Nearness is a share of the norms; under an offset all pairs would go the slow way.
    near = []
    slow = Points._from_differences
    monkeypatch.setattr(Points, "_from_differences", lambda *a: near.append(a[2].numel()) or slow(*a))
    _, h = pool(100, features=16, dtype=torch.float32)
    (points,) = Points.rows(h + 1000)
    points.distances(points)
    assert sum(near) == 100  # each point and itself


def test_duplicates_are_at_zero() -> None:
    p, h = pool(50, dtype=torch.float32)
    twice = torch.arange(50).repeat(2)
    points = Points.outer(residual(p)[twice], h[twice])
    nearest = torch.full((100,), torch.inf)
    points.lower(nearest, points.take(slice(0, 50)))
    assert (nearest == 0).all()


def test_lower_is_the_least_over_many_centres() -> None:
    (points,) = Points.rows(pool(700)[1])
    nearest = torch.full((700,), torch.inf, dtype=torch.float64)
    points.lower(nearest, points.take(slice(0, 300)))  # more than one group of centres
    expected = squared_distances(points.right, points.right[:300]).amin(1)
    torch.testing.assert_close(nearest, expected, rtol=1e-9, atol=1e-12)
    before = nearest.clone()
    points.lower(nearest, points.take(slice(0, 1)))
    assert (nearest <= before).all()


def test_whole_numbers_stay_exact() -> None:
    grid = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0))[:23] + 1000  # their mean is not whole
    (points,) = Points.rows(grid)
    found = points.distances(points)
    unit = found[found > 0].min()
    assert torch.equal(found / unit, squared_distances(grid, grid))
