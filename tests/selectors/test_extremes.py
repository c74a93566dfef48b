"""Numbers near the ends of what a float holds, and rows of which a model is nearly certain."""

from __future__ import annotations

import numpy as np
import pandas
import pytest
import torch
from torch import nn

from steelyard import selectors
from steelyard.selectors import (
    badge,
    deepfool,
    dfal,
    expected_gradient_length,
    expected_input_gradient_length,
    k_center,
    kmeans_plus_plus,
    lhd,
    prob_cover,
    typiclust,
)
from steelyard.selectors._points import Points


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def large(kind: str, size: float) -> torch.Tensor:
    points = torch.randn(300, 4, generator=source())
    if kind == "one row":
        points[5] = size
    elif kind == "both signs":
        points = torch.where(points > 0, size, -size)
    elif kind == "every other row":
        points[::2] = size
    elif kind == "one column":
        points[:, 1] = torch.where(points[:, 1] > 0, size, -size)
    else:
        points = (points * size).clamp(-3.4e38, 3.4e38)
    return points


@pytest.mark.parametrize("kind", ["one row", "both signs", "every other row", "one column", "all"])
@pytest.mark.parametrize("size", [3e38, -3e38, 3.4028234e38, 1e30, 1e20, 1e-30, 1e-40, 1e-45])
def test_seeding_ends_with_different_picks(kind: str, size: float) -> None:
    points = large(kind, size)
    for picked in (
        kmeans_plus_plus(points, 20, generator=source()),
        kmeans_plus_plus(points, 20, generator=source(), first="largest"),
        k_center(points, 20),
        k_center(points[:200], 20, labelled=points[200:]),
        typiclust(points, 20, generator=source()),
        prob_cover(points, 20, radius=abs(size), labelled=points[:2]),
        lhd(torch.eye(300)[:, :3], 2 * torch.eye(300)[:, :3], points, -points, 20, generator=source()),
        badge(torch.rand(300, 3, generator=source()).softmax(1), points, 20, generator=source()),
    ):
        assert len(set(picked.tolist())) == 20


@pytest.mark.parametrize("size", [3e38, 1e30, 1e25])
def test_beside_a_row_of_that_size_the_others_keep_their_distances(size: float) -> None:
    points = torch.randn(200, 4, generator=source())
    expected = k_center(points, 30)[:29]
    found = k_center(torch.cat([points, torch.full((1, 4), size)]), 30).tolist()
    assert found[:2] == [0, 200]  # the farthest of all; then what it would be without it
    assert [one for one in found if one != 200] == expected.tolist()


@pytest.mark.parametrize("size", [1e300, 1e-300, 1e-200, 1e200])
def test_float64_has_its_own_range(size: float) -> None:
    points = torch.randn(100, 4, generator=source(), dtype=torch.float64)
    assert torch.equal(k_center(points * size, 20), k_center(points, 20))
    two = (kmeans_plus_plus(one, 20, generator=source()) for one in (points * size, points))
    assert torch.equal(*two)


def test_distances_of_the_largest_floats_are_finite() -> None:
    points = torch.tensor([[3e38, -3e38], [-3e38, 3e38], [3e38, 3e38], [0.0, 0.0]])
    (found,) = Points.rows(points)
    distances = found.distances(found)
    expected = torch.cdist(points.double(), points.double()).square()
    torch.testing.assert_close(distances / distances.max(), (expected / expected.max()).to(distances.dtype))


def lengths(p: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """The definition, class by class, in float64."""
    p, eye = p.double(), torch.eye(p.shape[1], dtype=torch.float64)
    total = sum(p[:, y] * (p - eye[y]).norm(dim=1) for y in range(p.shape[1]))
    return total * embeddings.double().norm(dim=1)


@pytest.mark.parametrize("scale", [1, 5, 8, 10, 15, 20, 30])
@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_expected_gradient_length_of_confident_rows(scale: float, classes: int) -> None:
    p = (scale * torch.randn(300, classes, generator=source())).softmax(1)
    h = torch.randn(300, 5, generator=source(1))
    torch.testing.assert_close(expected_gradient_length(p, h).double(), lengths(p, h), rtol=1e-5, atol=1e-35)


@pytest.mark.parametrize("lead", [3.0, 8.0, 12.0, 20.0])
def test_expected_input_gradient_length_of_confident_rows(lead: float) -> None:
    weight = torch.randn(5, 4, generator=source())
    bias = torch.tensor([lead, 0.0, 0.0, 0.0])
    inputs = 0.01 * torch.randn(50, 5, generator=source(1))
    found = expected_input_gradient_length(lambda x: x @ weight.to(x) + bias.to(x), inputs)
    exact = expected_input_gradient_length(lambda x: x @ weight.to(x) + bias.to(x), inputs.double())
    p = (inputs.double() @ weight.double() + bias.double()).softmax(1)
    by_class = weight.T.double()
    sums = torch.stack([p @ by_class - by_class[y] for y in range(4)], 1).norm(dim=2)
    torch.testing.assert_close(exact, (p * sums).sum(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=0)


@pytest.mark.parametrize("features", [2, 3, 10, 100])
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e-3])
def test_a_crossing_without_overshoot_is_seen(features: int, scale: float) -> None:
    """A linear model's step lands on the boundary, up to the rounding of a sum that may be far above its value."""
    for seed in range(60):
        torch.manual_seed(seed)
        model = nn.Linear(features, 3 if seed % 2 else 2)
        with torch.no_grad():
            model.weight *= scale
        inputs = 100 * torch.randn(20, features)
        step, crossed = deepfool(model, inputs, overshoot=0.0)
        assert bool(crossed.all())
        top = model(inputs).double().topk(2).values
        if model.out_features == 2:
            exact = (top[:, 0] - top[:, 1]) / (model.weight[0] - model.weight[1]).double().norm()
            torch.testing.assert_close(step.double().norm(dim=1), exact.detach(), rtol=1e-4, atol=1e-4)
        assert float(dfal(model, inputs, overshoot=0.0).min()) > -1e6  # none is called "never crossed"


KINDS = {
    "array": np.array,
    "list": list,
    "pandas": lambda values: pandas.DataFrame(values) if np.ndim(values) == 2 else pandas.Series(values),
}
TAKEN = {
    "entropy": (lambda p, h, y: selectors.entropy(p)),
    "margin": (lambda p, h, y: selectors.margin(p)),
    "egl": (lambda p, h, y: selectors.expected_gradient_length(p, h)),
    "el2n": (lambda p, h, y: selectors.el2n(p, y)),
    "gradient_norm": (lambda p, h, y: selectors.gradient_norm(p, h, y)),
    "k_center": (lambda p, h, y: selectors.k_center(h, 2, labelled=h)),
    "kmeans": (lambda p, h, y: selectors.kmeans_plus_plus(h, 2, generator=source())),
    "badge": (lambda p, h, y: selectors.badge(p, h, 2, generator=source())),
    "lhd": (lambda p, h, y: selectors.lhd(p, p, h, h, 2, generator=source())),
    "mcp": (lambda p, h, y: selectors.mcp(p, 2)),
    "dre": (lambda p, h, y: selectors.dre(p, 2, generator=source())),
    "disagreement": (lambda p, h, y: selectors.rank_disagreement(p)),
    "self_confidence": (lambda p, h, y: selectors.self_confidence(p, y)),
    "normalised_margin": (lambda p, h, y: selectors.normalised_margin(p, y)),
    "forgetting": (lambda p, h, y: selectors.forgetting_events([y, y], y)),
    "density": (lambda p, h, y: selectors.density_weighted(selectors.margin(p), h)),
    "typiclust": (lambda p, h, y: selectors.typiclust(h, 2, generator=source(), labelled=h)),
    "prob_cover": (lambda p, h, y: selectors.prob_cover(h, 2, radius=1.0, labelled=h)),
    "pure_radius": (lambda p, h, y: torch.tensor(selectors.pure_radius(h, y))),
    "knn_shapley": (lambda p, h, y: selectors.knn_shapley(h, y, h, y)),
    "bait": (lambda p, h, y: selectors.bait(p, h, 2)),
    "grad_match": (lambda p, h, y: selectors.grad_match(h, 2).index),
    "craig": (lambda p, h, y: selectors.craig(h, 2).index),
    "cross_entropy_gradients": (lambda p, h, y: selectors.cross_entropy_gradients(p, y)),
    "importance": (lambda p, h, y: selectors.importance_probabilities(y)),
    "top_k": (lambda p, h, y: selectors.top_k(y, np.int64(2))),
    "deepfool": (lambda p, h, y: deepfool(lambda x: torch.cat([x, -x], 1)[:, :3], h, steps=np.int32(3))[0]),
}


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_arrays_lists_and_pandas_are_taken(name: str, kind) -> None:  # type: ignore[no-untyped-def]
    p = [[0.5, 0.25, 0.25], [0.25, 0.25, 0.5], [1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]
    h, y = [[0.5, 1.0], [2.0, 3.0], [4.0, 5.0], [7.0, -1.0]], [0, 1, 2, 1]
    found = TAKEN[name](kind(p), kind(h), kind(y))
    labels = torch.tensor(y)
    if name in ("importance", "top_k"):  # which ask of a tensor that it holds floats
        labels = labels.double()
    expected = TAKEN[name](torch.tensor(p), torch.tensor(h), labels)
    torch.testing.assert_close(found, expected, check_dtype=False)
