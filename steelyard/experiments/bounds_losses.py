"""Theorem 1 on a user's own losses: a matrix hypotheses x samples, as `.npy` or Parquet."""

from __future__ import annotations

import tokenize
import warnings
from pathlib import Path

import numpy as np
import pandas
import torch
from jaxtyping import Float
from torch import Tensor

from steelyard import theory
from steelyard.experiments.errors import DataError, UserError
from steelyard.experiments.parquet import read_parquet
from steelyard.theory import _conditions

__all__ = ["ConditionError", "read_losses", "terms_of_losses"]


class ConditionError(UserError, ValueError):
    """What the user gave does not meet a condition of Theorem 1; the message says which."""


# What NumPy raises on damaged headers, which it parses as Python (found by tests/fuzz).
_UNREADABLE = (OSError, ValueError, EOFError, SyntaxError, TypeError, OverflowError, MemoryError, tokenize.TokenError)


def read_losses(path: Path) -> Float[Tensor, "m n"]:
    """Read a loss matrix: `.npy` (no pickles) or `.parquet`, a row for each hypothesis and a column for each sample.

    Raises:
        DataError: no such file, another format, not a matrix of real numbers, or an entry that is not finite; the
            message names the file, the row and the column.
    """
    if not path.is_file():
        raise DataError(f"losses: no file at {path}")
    if path.suffix == ".npy":
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # a header as Python 2 wrote it
                array = np.load(path, allow_pickle=False)
        except _UNREADABLE as error:
            raise DataError(f"{path} is not a plain NumPy array: {error}") from error
        if not isinstance(array, np.ndarray):
            raise DataError(f"{path} is an archive of arrays; give one array")
        names: list[str] | None = None
    elif path.suffix in (".parquet", ".pq"):
        try:
            frame = read_parquet(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is not a readable Parquet file: {error}") from error
        names = [str(name) for name in frame.columns]
        for name, kind in zip(names, frame.dtypes, strict=True):
            if not (pandas.api.types.is_numeric_dtype(kind) or pandas.api.types.is_bool_dtype(kind)):
                raise DataError(f"{path}: column {name!r} holds {kind}, losses must be numbers")
        array = frame.to_numpy()
    else:
        raise DataError(f"{path}: losses are read from .npy or .parquet files, not {path.suffix!r}")
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiub":
        raise DataError(
            f"{path} holds {array.dtype} of shape {array.shape}; "
            "losses must be a matrix of numbers, hypotheses x samples"
        )
    matrix = array.astype(np.float64)
    bad = np.argwhere(~np.isfinite(matrix))
    if len(bad):
        row, column = (int(place) for place in bad[0])
        where = column if names is None else repr(names[column])
        raise DataError(f"{path}: {len(bad)} losses are not finite, the first in row {row}, column {where}")
    return torch.from_numpy(matrix)


def terms_of_losses(
    losses: Float[Tensor, "m n"],
    clean: Float[Tensor, "m n"] | None,
    *,
    s: int,
    q: int,
    delta: float,
    loss_range: float | None,
    draws: int,
    seed: int,
) -> pandas.DataFrame:
    """Return every term of Theorem 1 for every hypothesis of a finite class; a certificate up to its Monte Carlo error.

    Args:
        losses: ``(m, n)`` on the training sample as it was seen, g(D).
        clean: ``(m, n)`` on the same samples before corruption; None says that there was none. The Rademacher
            complexity is taken on it, and Q from its difference to `losses` on this one draw: with `clean`, delta is
            shared by three inequalities (two of the theorem, one for Q); without, Q >= 0 needs none.
        s, q, delta, loss_range: as in `steelyard.theory.theorem1`.
        draws: sign vectors for R^_n; n <= 14 samples are enumerated instead. seed: of the signs.

    Returns:
        A row for each hypothesis and term: hypothesis, term, equation, value, nature, note, certificate.
    """
    if clean is not None and clean.shape != losses.shape:
        raise ValueError(
            f"clean losses have shape {tuple(clean.shape)}, the losses {tuple(losses.shape)}: they must agree"
        )
    n = losses.shape[1]
    _conditions.batch_sizes(n, s, q)
    _conditions.confidence(delta)
    # M bounds a clean loss against a corrupted one, too
    width = _conditions.loss_range(loss_range, losses if clean is None else torch.cat([losses, clean], dim=1))
    reference = losses if clean is None else clean
    exact = n <= 14
    generator = torch.Generator().manual_seed(seed)
    complexity = theory.finite_class_complexity(reference, draws="all" if exact else draws, generator=generator)
    if clean is None:
        share = delta
        factor = theory.factor_floor(1.0, 0.0)
    else:
        share = delta * 2 / 3  # ln(2 / share) = ln(3 / delta): each of the three inequalities has delta / 3
        factor = theory.factor_lower(float(theory.factor_draw(clean, losses, s, q)), n, s, q, delta / 3, width)
    rows = []
    for hypothesis, row in enumerate(losses):
        bound = theory.theorem1(row, s=s, q=q, delta=share, loss_range=width, complexity=complexity, factor=factor)
        rows += [{"hypothesis": hypothesis, **term, "certificate": bound.is_certificate} for term in bound.rows()]
    return pandas.DataFrame(rows)
