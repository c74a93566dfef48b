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


def draw(pool, known, k, generator):
    return torch.randperm(len(pool), generator=generator)[:k]


@pytest.mark.parametrize("state", [3, np.int64(3), np.random.RandomState(3)], ids=["int", "NumPy's int", "RandomState"])
def test_the_same_question_has_the_same_answer(state) -> None:
    x, y = np.zeros((50, 1)), np.full(50, np.nan)
    first, second = Query(select=draw, random_state=state), Query(select=draw, random_state=state)
    runs = [one.query(x, y, batch_size=5).tolist() for one in (first, first, second)]
    assert runs[0] == runs[1] == runs[2]
    assert Query(select=draw, random_state=4).query(x, y, batch_size=5).tolist() != runs[0]


def test_no_random_state_starts_anew() -> None:
    x, y = np.zeros((1000, 1)), np.full(1000, np.nan)
    free = Query(select=draw, random_state=None)
    assert sorted(free.query(x, y, batch_size=1000)) == list(range(1000))
    assert free.random_state is None


def test_utilities_of_a_selection_say_which_was_picked_when() -> None:
    strategy = Query(select=lambda pool, known, k, generator: k_center(pool, k, labelled=known))
    x = np.array([[0.0], [9.0], [1.0], [4.0], [8.5]])
    picked, utilities = strategy.query(x, Y, batch_size=2, return_utilities=True)
    assert picked.tolist() == [1, 3]
    nan = np.nan
    np.testing.assert_array_equal(utilities, [[nan, 1, nan, 0, 0], [nan, nan, nan, 1, 0]])
    picked, utilities = strategy.query(X, Y, candidates=np.array([[5.0], [7.0]]), return_utilities=True)
    np.testing.assert_array_equal(utilities, [[0, 1]])


@pytest.mark.parametrize("strategy", [Query(score=by_feature), Query(select=draw)], ids=["score", "select"])
def test_a_batch_above_the_pool_is_the_pool_with_a_warning(strategy) -> None:
    with pytest.warns(UserWarning, match="batch_size is 9, but there are only 3 candidates"):
        picked, utilities = strategy.query(X, Y, batch_size=9, return_utilities=True)
    assert sorted(picked) == [1, 3, 4]
    assert utilities.shape == (3, 5)


def test_a_strategy_is_cloned_as_an_estimator() -> None:
    from sklearn.base import clone

    strategy = Query(score=by_feature, missing_label=-1, random_state=3)
    copied = clone(strategy)
    assert copied is not strategy
    assert copied.get_params() == strategy.get_params()
    assert copied.query(X, [0, -1, 1, -1, 1]).tolist() == [1]
    assert copied.set_params(missing_label=1).query(X, [0, -1, 1, -1, 1]).tolist() == [4]
    with pytest.raises(ValueError, match="a parameter must be one of .* did you mean 'score'"):
        copied.set_params(scor=by_feature)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Query().query(X, Y), "exactly one of score and select"),
        (lambda: Query(score=by_feature, select=draw).query(X, Y), "exactly one of score and select"),
        (lambda: Query(score=by_feature).query(X, Y[:3]), r"y \(n,\), got \(5, 1\) and \(3,\)"),
        (lambda: Query(score=by_feature).query(X, np.zeros(5)), "there are no candidates"),
        (lambda: Query(score=by_feature).query(X, Y, batch_size=0), "batch_size must be >= 1, got 0"),
        (lambda: Query(score=by_feature).query(X, Y, candidates=[5]), "candidates must be in 0 .. 4"),
        (lambda: Query(score=by_feature).query(X, Y, candidates=[1, 1]), "different indices"),
        (lambda: Query(score=by_feature).query(X, Y, candidates=np.ones((2, 3))), "candidates has 3 features"),
        (lambda: Query(score=by_feature).query(X, Y, candidates=np.nan), "different indices"),
        (lambda: Query(score=by_feature, random_state="state").query(X, Y), "random_state must be None, an int or"),
        (lambda: Query(score=by_feature, random_state=np.nan).query(X, Y), "random_state must be None, an int or"),
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
        Query(score=3).query(X, Y)
    for call, words in (
        (lambda: strategy.query(X, np.nan), "y must hold a label for each sample"),
        (lambda: strategy.query(X, Y, candidates=Query), "candidates must be indices"),
        (lambda: strategy.query(X, Y, return_utilities="yes"), "return_utilities must be True or False"),
        (lambda: Query(score=by_feature, missing_label=Query).query(X, Y), "missing_label must be a value"),
    ):
        with pytest.raises(TypeError, match=words):
            call()
    with pytest.raises(TypeError, match="X must be a tensor, or numbers"):
        strategy.query([["a"], ["b"]], [0, np.nan])
