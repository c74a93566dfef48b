"""scikit-activeml's calling convention."""

from __future__ import annotations

import jaxtyping
import numpy as np
import pytest
import torch

from steelyard.selectors import Query, k_center

X = np.array([[0.1], [0.9], [0.3], [0.7], [0.5]])
Y = np.array([1.0, np.nan, 0.0, np.nan, np.nan])


def by_feature(features: torch.Tensor) -> torch.Tensor:
    return features[:, 0]


@pytest.fixture(autouse=True)
def unchecked_shapes(monkeypatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def test_score_queries_the_unlabelled() -> None:
    picked, utilities = Query(score=by_feature).query(X, Y, batch_size=2, return_utilities=True)
    assert picked.tolist() == [1, 3]
    nan = np.nan
    np.testing.assert_array_equal(utilities, [[nan, 0.9, nan, 0.7, 0.5], [nan, nan, nan, 0.7, 0.5]])


def test_candidates_by_index_and_by_sample() -> None:
    strategy = Query(score=by_feature)
    picked, utilities = strategy.query(X, Y, candidates=[4, 2], return_utilities=True)
    assert picked.tolist() == [4]
    assert np.isnan(utilities[0]).tolist() == [True, True, False, True, False]
    picked, utilities = strategy.query(X, Y, candidates=np.array([[5.0], [7.0]]), batch_size=2, return_utilities=True)
    assert picked.tolist() == [1, 0]
    np.testing.assert_array_equal(utilities, [[5.0, 7.0], [5.0, np.nan]])


@pytest.mark.parametrize(
    ("y", "marker"),
    [(Y, np.nan), (np.array([1, -1, 0, -1, -1]), -1), (np.array(["a", None, "b", None, None], dtype=object), None)],
)
def test_selection_sees_the_labelled(y, marker) -> None:
    seen = {}

    def select(pool, known, k, generator):
        seen["known"] = known
        return k_center(pool, k, labelled=known)

    assert Query(select=select, missing_label=marker).query(X, y, batch_size=1).tolist() == [1]
    assert seen["known"].tolist() == [[0.1], [0.3]]


def test_seeds() -> None:
    def draw(pool, known, k, generator):
        return torch.randperm(len(pool), generator=generator)[:k]

    x, y = np.zeros((50, 1)), np.full(50, np.nan)
    first, second = Query(select=draw, seed=3), Query(select=draw, seed=3)
    runs = [first.query(x, y, batch_size=5).tolist() for _ in range(2)]
    assert runs == [second.query(x, y, batch_size=5).tolist() for _ in range(2)]
    assert runs[0] != runs[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Query(), "exactly one of score and select"),
        (lambda: Query(score=by_feature).query(X, Y[:3]), r"y \(n,\), got \(5, 1\) and \(3,\)"),
        (lambda: Query(score=by_feature).query(X, np.zeros(5)), "there are no candidates"),
        (lambda: Query(score=by_feature).query(X, Y, batch_size=4), r"batch_size must be in \[1, 3\], got 4"),
        (lambda: Query(score=by_feature).query(X, Y, candidates=[5]), "candidates must be in 0 .. 4"),
        (lambda: Query(score=by_feature).query(X, Y, candidates=[1, 1]), "different indices"),
        (lambda: Query(score=by_feature).query(X, Y, candidates=np.ones((2, 3))), "candidates has 3 features"),
        (lambda: Query(select=lambda *a: a).query(X, Y, return_utilities=True), "return_utilities needs score"),
    ],
)
def test_errors(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
