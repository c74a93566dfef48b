"""Theorem 1 on a user's own losses: a matrix hypotheses x samples, as `.npy` or Parquet."""

from __future__ import annotations

import tokenize
import warnings
from pathlib import Path

import numpy as np
import pandas
import torch
from jaxtyping import Shaped
from torch import Tensor

from steelyard import theory
from steelyard.experiments.data.parquet import read_parquet
from steelyard.experiments.errors import DataError, UserError
from steelyard.theory import _conditions

__all__ = ["ConditionError", "read_losses", "summary_of_terms", "terms_of_losses", "turned_hint"]


class ConditionError(UserError, ValueError):
    """What the user gave does not meet a condition of Theorem 1; the message says which."""


_SHARED = {np.dtype(kind).str for kind in ("f4", "f8", "i1", "i2", "i4", "i8", "u1")}  # torch has all of these whole

# What NumPy raises on damaged headers, which it parses as Python (found by tests/fuzz).
_UNREADABLE = (OSError, ValueError, EOFError, SyntaxError, TypeError, OverflowError, MemoryError, tokenize.TokenError)


def read_losses(path: Path, transpose: bool = False) -> Shaped[Tensor, "m n"]:
    """Read a loss matrix: `.npy` (no pickles) or `.parquet`, a row for each hypothesis and a column for each sample.

    An `.npy` file is mapped, not loaded: its numbers keep their type and are read when they are looked at.

    Args:
        path: of the file.
        transpose: its rows are samples and its columns hypotheses.

    Raises:
        DataError: no such file, another format, not a matrix of real numbers, or an entry that is missing or not
            finite; the message names the file, the row and the column.
    """
    if not path.is_file():
        raise DataError(f"losses: no file at {path}")
    names: list[str] | None = None
    if path.suffix == ".npy":
        array = _mapped(path)
    elif path.suffix in (".parquet", ".pq"):
        array, names = _columns(path)
    else:
        raise DataError(f"{path}: losses are read from .npy or .parquet files, not {path.suffix!r}")
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiub":
        raise DataError(
            f"{path} holds {array.dtype} of shape {array.shape}; "
            "losses must be a matrix of numbers, hypotheses x samples"
        )
    _check_finite(path, array, names)
    if array.dtype.str not in _SHARED:
        array = array.astype(np.float64)
    matrix = torch.from_numpy(array)
    return matrix.T if transpose else matrix


def _mapped(path: Path) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a header as Python 2 wrote it
            # Writable for torch, which warns of what is not; what would be written is of this process alone.
            array = np.load(path, mmap_mode="c", allow_pickle=False)
    except _UNREADABLE as error:
        raise DataError(f"{path} is not a plain NumPy array: {error}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} is an archive of arrays; give one array")
    return array


def _columns(path: Path) -> tuple[np.ndarray, list[str]]:
    """Return the columns of a Parquet file as a matrix, with NaN where an entry is missing, and their names."""
    try:
        frame = read_parquet(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error
    names = [str(name) for name in frame.columns]
    for name, kind in zip(names, frame.dtypes, strict=True):
        if not (pandas.api.types.is_numeric_dtype(kind) or pandas.api.types.is_bool_dtype(kind)):
            raise DataError(f"{path}: column {name!r} holds {kind}, losses must be numbers")
    array = np.empty(frame.shape)
    for place in range(len(names)):  # one by one: a nullable column is no array of numbers by itself
        array[:, place] = frame.iloc[:, place].to_numpy(dtype=np.float64, na_value=np.nan)
    return array, names


def _check_finite(path: Path, array: np.ndarray, names: list[str] | None) -> None:
    if array.dtype.kind != "f":
        return
    bad = np.array([np.count_nonzero(~np.isfinite(row)) for row in array])
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        column = int(np.flatnonzero(~np.isfinite(array[row]))[0])
        where = column if names is None else repr(names[column])
        raise DataError(f"{path}: {bad.sum()} losses are missing or not finite, the first in row {row}, column {where}")


def terms_of_losses(
    losses: Shaped[Tensor, "m n"],
    clean: Shaped[Tensor, "m n"] | None,
    *,
    s: int,
    q: int,
    delta: float,
    loss_range: float | None,
    draws: int,
    seed: int,
    fixed: bool = False,
) -> pandas.DataFrame:
    """Return every term of Theorem 1 for every hypothesis of a finite class; a certificate up to its Monte Carlo error.

    Args:
        losses: ``(m, n)`` on the training sample as it was seen, g(D).
        clean: ``(m, n)`` on the same samples before corruption; None says that there was none. The Rademacher
            complexity is taken on it, and Q from its difference to `losses` on this one draw: with `clean`, delta is
            shared by three inequalities (two of the theorem, one for Q); without, Q >= 0 needs none.
        s, q, delta, loss_range: as in `steelyard.theory.theorem1`.
        draws: sign vectors for R^_n; n <= 14 samples are enumerated instead. seed: of the signs.
        fixed: the hypotheses were fixed before these samples were drawn, as the theorem asks; of models that were
            trained on them, or chosen by them, it says nothing. Without it no number is a certificate.

    Returns:
        A row for each hypothesis and term: hypothesis, term, equation, value, nature, note, certificate. The last two
        of each, its mean loss and the most that a loss can be, are no part of the bound.
    """
    if clean is not None and clean.shape != losses.shape:
        raise ValueError(
            f"clean losses have shape {tuple(clean.shape)}, the losses {tuple(losses.shape)}: they must agree"
        )
    m, n = losses.shape
    if s > n:
        hint = turned_hint(m, n)
        raise ValueError(
            f"Theorem 1 needs s <= n: a batch of s = {s} cannot be drawn from n = {n} samples"
            + (f". {hint}" if hint else "")
        )
    return _table(losses, clean, s, q, _conditions.confidence(delta), loss_range, draws, seed, fixed)


def _table(
    losses: Tensor,
    clean: Tensor | None,
    s: int,
    q: int,
    delta: float,
    loss_range: float | None,
    draws: int,
    seed: int,
    fixed: bool,
) -> pandas.DataFrame:
    n = losses.shape[1]
    _conditions.batch_sizes(n, s, q)
    ends = _ends(losses) if clean is None else torch.cat([_ends(losses), _ends(clean)], dim=1)
    width = _conditions.loss_range(loss_range, ends)  # M bounds a clean loss against a corrupted one, too
    within = float(ends.min()) >= 0 and float(ends.max()) <= width
    reference = losses if clean is None else clean
    exact = n <= 14
    generator = torch.Generator().manual_seed(seed)
    complexity = theory.finite_class_complexity(reference, draws="all" if exact else draws, generator=generator)
    if clean is None:
        share = delta
        factor = theory.factor_floor(1.0, 0.0)
    else:
        share = delta * 2 / 3  # ln(2 / share) = ln(3 / delta): each of the three inequalities has delta / 3
        draw = min(
            float(theory.factor_draw(one[None], two[None], s, q)) for one, two in zip(clean, losses, strict=True)
        )
        factor = theory.factor_lower(draw, n, s, q, delta / 3, width)
    rows = []
    for hypothesis, row in enumerate(losses):
        bound = theory.theorem1(
            row.double(),
            s=s,
            q=q,
            delta=share,
            loss_range=width,
            complexity=complexity,
            factor=factor,
            largest=width if within else None,  # losses seen in [0, M] are taken to be of a loss in [0, M]
        )
        beside = [
            ("mean loss", "L(theta; g(D))", float(row.double().mean()), "no part of the bound"),
            ("largest loss", "least seen + M, or M", bound.ceiling, "a bound above it says nothing"),
        ]
        terms = bound.rows() + [
            {"term": name, "equation": equation, "value": value, "nature": "exact", "note": note}
            for name, equation, value, note in beside
        ]
        rows += [{"hypothesis": hypothesis, **term, "certificate": fixed and bound.is_certificate} for term in terms]
    return pandas.DataFrame(rows)


def _ends(losses: Tensor) -> Tensor:
    """Return the least and the greatest loss of each hypothesis ``(m, 2)``."""
    return torch.stack([end.double() for end in losses.aminmax(dim=1)], dim=1)


def summary_of_terms(terms: pandas.DataFrame, *, delta: float, fixed: bool, corrupted: bool) -> pandas.DataFrame:
    """Return a row for each hypothesis: its mean loss, L_q, the bound and what this says, in a sentence.

    Args:
        terms: of `terms_of_losses`.
        delta, fixed: as they were given there.
        corrupted: whether the clean losses were given too.
    """
    wide = terms.pivot(index="hypothesis", columns="term", values="value")
    certified = terms.groupby("hypothesis")["certificate"].all()
    rows = []
    for hypothesis, row in wide.iterrows():
        bound = row["right-hand side"]
        rows.append(
            {
                "hypothesis": hypothesis,
                "mean loss": row["mean loss"],
                "L_q": row["training"],
                "bound": bound,
                "certificate": bool(certified[hypothesis]),
                "sentence": _sentence(bound, row["largest loss"], delta, fixed, corrupted),
            }
        )
    return pandas.DataFrame(rows)


def _sentence(bound: float, ceiling: float, delta: float, fixed: bool, corrupted: bool) -> str:
    if bound >= ceiling:
        return f"says nothing, since {bound:.4g} >= {ceiling:.4g}, the most that a loss can be"
    conditions = ["the samples are independent draws"]
    if not corrupted:
        conditions.append("nobody corrupted them")
    if not fixed:
        conditions.insert(0, "all hypotheses were fixed before the data (which was not said: no certificate)")
    return f"risk at most {bound:.4g} with probability {1 - delta:g}, if {' and '.join(conditions)}"


def turned_hint(m: int, n: int) -> str:
    """Return a hint for a matrix that has more hypotheses than samples."""
    if m <= n:
        return ""
    return (
        f"The losses have {m} rows, which are read as hypotheses, and {n} columns, read as samples: if the rows are "
        "samples, give --transpose"
    )
