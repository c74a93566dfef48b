"""scikit-activeml's convention: `query(X, y)`, missing labels marked in y. Duck-typed: the package is not needed."""

from __future__ import annotations

import copy
import inspect
import numbers
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.selectors import _inputs
from steelyard.selectors.pick import top_k

__all__ = ["Query"]

Features = npt.ArrayLike


class Query:
    """A query strategy made of one of our scores or selections.

    As scikit-learn has it, what is given is kept as it is and checked by `query`, and ``sklearn.base.clone`` makes
    another of it.

    Args:
        score: features of the candidates ``(m, features)`` -> ``(m,)`` finite, higher = picked first. What the features
            are is up to you: inputs that the callable sends through a model, probabilities, embeddings.
        select: (candidates ``(m, features)``, labelled ``(l, features)``, k, generator) -> k different positions in
            0 .. m - 1. Exactly one of `score` and `select`. What either returns may be a list or an array.
        missing_label: what marks an unlabelled sample in y (NaN, None, or a value such as -1).
        random_state: an int or a `numpy.random.RandomState`: every query starts from it again, so that the same
            question has the same answer. None: another start each time.

    References:
        D. Kottke et al., scikit-activeml: a library and toolbox for active learning algorithms, 2021; its strategies'
        tests, as far as they ask no model of a strategy, pass.

    Example:
        >>> from steelyard.selectors import k_center
        >>> strategy = Query(select=lambda pool, known, k, generator: k_center(pool, k, labelled=known))
        >>> X, y = np.array([[0.0], [1.0], [5.0]]), np.array([0.0, np.nan, np.nan])
        >>> strategy.query(X, y, batch_size=1).tolist()
        [2]
    """

    def __init__(
        self,
        *,
        score: Callable[[Tensor], Tensor | Numbers] | None = None,
        select: Callable[[Tensor, Tensor, int, torch.Generator], Tensor | Numbers] | None = None,
        missing_label: Any = float("nan"),
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.score, self.select = score, select
        self.missing_label, self.random_state = missing_label, random_state

    def query(
        self,
        X: Features,
        y: npt.ArrayLike,
        candidates: npt.ArrayLike | None = None,
        batch_size: int = 1,
        return_utilities: bool = False,
    ) -> Any:
        """Return the indices ``(batch_size,)`` to label next.

        Args:
            X: ``(n, features)``. y: ``(n,)`` labels, unlabelled ones marked.
            candidates: None (all unlabelled), ``(m,)`` indices into X, or ``(m, features)`` samples of their own; in
                the last case the indices are into `candidates`.
            batch_size: how many; all candidates, with a warning, where there are fewer.
            return_utilities: also return ``(batch_size, n)`` (or ``(batch_size, m)``) utilities before each pick, NaN
                for what is no candidate or picked already. Of a score they are the scores; a selection picks a set, so
                there the sample picked has 1 and all others 0.

        Warns:
            UserWarning: a `batch_size` above the number of candidates.

        Raises:
            ValueError: both or neither of `score` and `select`; X and y of different lengths, no candidates, indices
                out of range, a `random_state` that is none; `score` gave another number of scores, or NaN, `select`
                another number of positions, repeated ones, or ones that are not of a candidate.
            TypeError: `score` or `select` that cannot be called, or that returned something else; a y without entries;
                a `missing_label` that no label can be; a `batch_size` that is no int, `return_utilities` no bool.
        """
        self._check_callables()
        generator = _generator(self.random_state)
        X, y = _features("X", X), _labels(y)
        if X.ndim != 2 or y.shape != X.shape[:1]:
            raise ValueError(f"X must be (n, features) and y (n,), got {X.shape} and {y.shape}")
        return_utilities = _check.boolean("return_utilities", return_utilities)
        labelled = ~_is_missing(y, self.missing_label)
        pool, index = _pool(X, labelled, candidates)
        count = _capped(batch_size, len(pool))
        features = _check.tensor("X", pool)
        if self.select is not None:
            known = _check.tensor("X", X[labelled])
            returned = self.select(features, known, count, generator)
            picked = _inputs.positions("select", returned, count, len(pool), "the candidates").cpu().numpy()
            score = np.zeros((count, len(pool)))
            score[np.arange(count), picked] = 1
        else:
            assert self.score is not None
            values = _inputs.matrix("what score returns", self.score(features), ("m",))
            if len(values) != len(pool):
                raise ValueError(f"score must return one number a candidate, {len(pool)}, got {len(values)}")
            picked = top_k(values, count, generator=generator).cpu().numpy()
            score = values.cpu().numpy()
        result = picked if index is None else index[picked]
        if not return_utilities:
            return result
        return result, _utilities(score, result, index, len(pool) if index is None else len(X))

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return what the strategy was made with, by name, as scikit-learn asks; `deep` changes nothing."""
        return {
            name: getattr(self, name) for name in inspect.signature(type(self).__init__).parameters if name != "self"
        }

    def set_params(self, **params: Any) -> Query:
        """Set some of `get_params`, and return the strategy; ValueError for an unknown name."""
        for name, value in params.items():
            _check.choice("a parameter", name, self.get_params())
            setattr(self, name, value)
        return self

    def _check_callables(self) -> None:
        if (self.score is None) == (self.select is None):
            raise ValueError("pass exactly one of score and select")
        for name, given in (("score", self.score), ("select", self.select)):
            if given is not None:
                _check.function(name, given, "a function of features")


def _generator(random_state: Any) -> torch.Generator:
    """Return a new generator that starts from `random_state`, which is left as it is."""
    generator = torch.Generator()
    if random_state is None:
        generator.seed()
        return generator
    if isinstance(random_state, np.random.RandomState):
        return generator.manual_seed(int(copy.deepcopy(random_state).randint(2**31)))
    if isinstance(random_state, (bool, np.bool_)) or not isinstance(random_state, numbers.Integral):
        raise ValueError(
            f"random_state must be None, an int or a numpy.random.RandomState, got {_check.shown(random_state)}"
        )
    return generator.manual_seed(_check.seed("random_state", int(random_state)))


def _capped(batch_size: int, candidates: int) -> int:
    count = _check.integer("batch_size", batch_size, low=1)
    if count > candidates:
        warnings.warn(
            f"batch_size is {count}, but there are only {candidates} candidates: all of them are returned", stacklevel=3
        )
    return min(count, candidates)


def _labels(y: npt.ArrayLike) -> np.ndarray:
    if isinstance(y, (str, bytes, type)) or not hasattr(y, "__len__"):
        raise TypeError(f"y must hold a label for each sample, got {_check.shown(y)}")
    return np.asarray(y)


def _features(name: str, values: Features) -> np.ndarray:
    array: np.ndarray = _check.tensor(name, values).detach().cpu().numpy()  # type: ignore[arg-type]
    return array


def _pool(
    X: np.ndarray, labelled: np.ndarray, candidates: npt.ArrayLike | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the candidates' features, and their indices into X unless they are samples of their own."""
    if isinstance(candidates, (str, bytes, type)):
        raise TypeError(
            f"candidates must be indices (m,) into X, or samples (m, features), got {_check.shown(candidates)}"
        )
    index = np.flatnonzero(~labelled) if candidates is None else np.asarray(candidates)
    if index.ndim and not len(index):
        known = "there are no candidates: every label in y is known"
        raise ValueError(known if candidates is None else "candidates is empty: there is nothing to choose from")
    if index.ndim == 2:
        index = _features("candidates", index)
        if index.shape[1] != X.shape[1]:
            raise ValueError(f"candidates has {index.shape[1]} features, but X has {X.shape[1]}")
        return index, None
    if index.ndim != 1 or not np.issubdtype(index.dtype, np.integer) or len(np.unique(index)) != len(index):
        raise ValueError("candidates must be different indices (m,) into X, or samples (m, features)")
    if len(index) and not (index.min() >= 0 and index.max() < len(X)):
        raise ValueError(f"candidates must be in 0 .. {len(X) - 1}, got {index.min()} .. {index.max()}")
    return X[index], index


def _is_missing(y: np.ndarray, marker: Any) -> np.ndarray:
    if isinstance(marker, type) or (callable(marker) and not hasattr(marker, "__len__")):
        raise TypeError(f"missing_label must be a value that y may hold, such as NaN or -1, got {_check.shown(marker)}")
    if isinstance(marker, (float, np.floating)) and np.isnan(marker):
        if y.dtype.kind in "fiubc":
            return np.isnan(y)
        return np.array([not _equal(label, label) for label in y.tolist()], dtype=bool)  # among names
    if marker is None:
        return np.array([label is None for label in y.tolist()], dtype=bool)
    return np.array([_equal(label, marker) for label in y.tolist()], dtype=bool)


def _equal(label: Any, marker: Any) -> bool:
    try:
        return bool(label == marker)
    except TypeError:  # pandas' NA
        return False


def _utilities(score: np.ndarray, picked: np.ndarray, index: np.ndarray | None, width: int) -> np.ndarray:
    utilities = np.full((len(picked), width), np.nan)
    utilities[:, slice(None) if index is None else index] = score
    for step, column in enumerate(picked):
        utilities[step + 1 :, column] = np.nan
    return utilities
