"""scikit-activeml's convention: `query(X, y)`, missing labels marked in y. Duck-typed: the package is not needed."""

from __future__ import annotations

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

    Args:
        score: features of the candidates ``(m, features)`` -> ``(m,)`` finite, higher = picked first. What the features
            are is up to you: inputs that the callable sends through a model, probabilities, embeddings.
        select: (candidates ``(m, features)``, labelled ``(l, features)``, k, generator) -> k different positions in
            0 .. m - 1. Exactly one of `score` and `select`. What either returns may be a list or an array.
        missing_label: what marks an unlabelled sample in y (NaN, None, or a value such as -1).
        seed: of the generator, which goes on from one call to the next.

    Raises:
        ValueError: both or neither of `score` and `select`. TypeError: one that cannot be called.

    References:
        D. Kottke et al., scikit-activeml: a library and toolbox for active learning algorithms, 2021.

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
        seed: int = 0,
    ) -> None:
        if (score is None) == (select is None):
            raise ValueError("pass exactly one of score and select")
        for name, given in (("score", score), ("select", select)):
            if given is not None:
                _check.function(name, given, "a function of features")
        self._score, self._select, self._missing = score, select, missing_label
        self._generator = torch.Generator().manual_seed(_check.seed("seed", seed))

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
            batch_size: how many.
            return_utilities: also return ``(batch_size, n)`` (or ``(batch_size, m)``) utilities: the scores before each
                pick, NaN for what is no candidate or picked already. Needs `score`.

        Raises:
            ValueError: X and y of different lengths, no candidates, a `batch_size` above their number (scikit-activeml
                warns and lowers it), indices out of range, or utilities of a selection, which has none; `score` gave
                another number of scores, or NaN, `select` another number of positions, repeated ones, or ones that are
                not of a candidate.
            TypeError: either returned something else.
        """
        X, y = _features("X", X), np.asarray(y)
        if X.ndim != 2 or y.shape != X.shape[:1]:
            raise ValueError(f"X must be (n, features) and y (n,), got {X.shape} and {y.shape}")
        if return_utilities and self._score is None:
            raise ValueError("return_utilities needs score=...; a selection picks a set and has no utility per sample")
        labelled = ~_is_missing(y, self._missing)
        pool, index = _pool(X, labelled, candidates)
        batch_size = _check.integer("batch_size", batch_size, low=1, high=len(pool))
        features = _check.tensor("X", pool)
        if self._select is not None:
            labels = _check.tensor("X", X[labelled])
            returned = self._select(features, labels, batch_size, self._generator)
            picked = _inputs.positions("select", returned, batch_size, len(pool), "the candidates").cpu().numpy()
            return picked if index is None else index[picked]
        assert self._score is not None
        score = _inputs.matrix("what score returns", self._score(features), ("m",))
        if len(score) != len(pool):
            raise ValueError(f"score must return one number a candidate, {len(pool)}, got {len(score)}")
        picked = top_k(score, batch_size, generator=self._generator).cpu().numpy()
        result = picked if index is None else index[picked]
        if not return_utilities:
            return result
        return result, _utilities(score.cpu().numpy(), result, index, len(pool) if index is None else len(X))


def _features(name: str, values: Features) -> np.ndarray:
    array: np.ndarray = _check.tensor(name, values).detach().cpu().numpy()  # type: ignore[arg-type]
    return array


def _pool(
    X: np.ndarray, labelled: np.ndarray, candidates: npt.ArrayLike | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the candidates' features, and their indices into X unless they are samples of their own."""
    index = np.flatnonzero(~labelled) if candidates is None else np.asarray(candidates)
    if not len(index):
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
