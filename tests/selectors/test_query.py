"""scikit-activeml's calling convention."""

from __future__ import annotations

import jaxtyping
import numpy as np
import pandas
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


def chosen(value):  # type: ignore[no-untyped-def]
    return Query(select=lambda pool, known, k, generator: value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.tensor([0]), r"select must return 2 different positions, got shape \(1,\)"),
        (torch.tensor([0, 1, 2]), r"2 different positions, got shape \(3,\)"),
        (torch.tensor([[0, 1]]), r"got shape \(1, 2\)"),
        (torch.tensor(1), r"got shape \(\)"),
        (torch.tensor([1, 1]), "select must return 2 different positions, 1 of them are repeated"),
        ([2, 2], "1 of them are repeated"),
        (torch.tensor([-1, 0]), r"select must return positions in 0 \.\. 2 of the candidates, got -1 \.\. 0"),
        (np.array([0, 3]), r"in 0 \.\. 2 of the candidates, got 0 \.\. 3"),
        ([0, 10**9], "of the candidates"),
        (torch.tensor([0.0, 1.0]), "what select returns must hold integers, got torch.float32"),
        (torch.tensor([True, False]), "must hold integers, got torch.bool"),
        (["a", "b"], "select must be a tensor, or numbers"),
        (None, "select must be a tensor, got None"),
        ({0, 1}, "select must be a tensor, got"),
    ],
    ids=str,
)
def test_a_selection_is_checked(value, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        chosen(value).query(X, Y, batch_size=2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value", [[2, 0], (2, 0), np.array([2, 0]), np.array([2, 0], dtype=np.int8), torch.tensor([2, 0]).int()], ids=str
)
def test_a_selection_may_be_a_list_or_an_array(value) -> None:  # type: ignore[no-untyped-def]
    picked = chosen(value).query(X, Y, batch_size=2)
    assert isinstance(picked, np.ndarray)
    assert picked.tolist() == [4, 1]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.ones(2), "score must return one number a candidate, 3, got 2"),
        (torch.ones(4), "3, got 4"),
        (torch.ones(3, 1), r"what score returns must have the shape \(m\), got \(3, 1\)"),
        (torch.tensor([1.0, np.nan, 0.0]), "what score returns has 1 entries that are NaN"),
        (torch.tensor([1, 2, 3]), "what score returns must be floating point, got torch.int64"),
        (torch.tensor(1.0), r"what score returns must have the shape \(m\), got \(\)"),
        ([], "got 0|empty"),
        (None, "what score returns must be a tensor, got None"),
        (["a", "b", "c"], "what score returns must be a tensor, or numbers"),
        (0.5, "what score returns must be a tensor, got 0.5"),
    ],
    ids=str,
)
@pytest.mark.parametrize("utilities", [False, True])
def test_a_score_is_checked(value, words: str, utilities: bool) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises((ValueError, TypeError), match=words):
        Query(score=lambda features: value).query(X, Y, return_utilities=utilities)


@pytest.mark.parametrize(
    "value", [[0.1, 0.9, 0.5], np.array([1, 9, 5]), (1, 9, 5), torch.tensor([0.1, 0.9, 0.5]).half()]
)
def test_a_score_may_be_a_list_or_an_array(value) -> None:  # type: ignore[no-untyped-def]
    picked, utilities = Query(score=lambda features: value).query(X, Y, batch_size=np.int64(2), return_utilities=True)
    assert picked.tolist() == [3, 4]
    assert utilities.shape == (2, 5)


def test_what_is_given_to_a_query() -> None:
    """Labels as names, markers of NumPy and pandas, features as a list or a table."""
    strategy = Query(score=by_feature, missing_label=np.float32("nan"))
    assert strategy.query(X.tolist(), Y).tolist() == [1]
    assert strategy.query(pandas.DataFrame(X), pandas.Series(Y)).tolist() == [1]
    assert strategy.query(X, np.array(["cat", np.nan, "dog", np.nan, "cat"], dtype=object)).tolist() == [1]
    assert strategy.query(X, pandas.Series([1, None, 0, 1, 0], dtype="Int64")).tolist() == [1]
    assert Query(score=by_feature, missing_label="?").query(X, np.array(["cat", "?", "?", "dog", "cat"])).tolist() == [
        1
    ]
    assert Query(score=by_feature, missing_label=None).query(X, [0, 1, None, None, 1]).tolist() == [3]
    for wrong in ([], np.zeros((0, 1))):
        with pytest.raises(ValueError, match="candidates is empty"):
            strategy.query(X, Y, candidates=wrong)
    with pytest.raises(TypeError, match="score must be a function of features, got 3"):
        Query(score=3)
    with pytest.raises(TypeError, match="X must be a tensor, or numbers"):
        strategy.query([["a"], ["b"]], [0, np.nan])
