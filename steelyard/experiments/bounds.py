"""`steelyard bounds --losses`: the terms of Theorem 1 for a user's own losses, hypotheses x samples."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pandas

from steelyard._support import _check, _files
from steelyard.experiments.bounds_losses import (
    ConditionError,
    read_losses,
    summary_of_terms,
    terms_of_losses,
    turned_hint,
)
from steelyard.experiments.compare.spreadsheet import frame_text

__all__ = ["bounds"]


def bounds(
    output: str | os.PathLike[str],
    *,
    losses: str | os.PathLike[str] | None = None,
    transpose: bool = False,
    fixed: bool = False,
    clean: str | os.PathLike[str] | None = None,
    s: int = 16,
    q: int = 4,
    delta: float = 0.05,
    loss_range: float | None = None,
    draws: int = 1000,
    seed: int = 0,
    warn: Callable[[str], None] | None = None,
) -> dict[str, pandas.DataFrame]:
    """Write the terms of the bound to `output` and return them: table "terms", file `terms.csv`, and "summary".

    Args:
        output: folder for the results; made if it is not there.
        losses: a loss matrix, hypotheses x samples (`.npy` or Parquet), as seen in training, g(D).
        transpose: the rows of `losses` (and of `clean`) are samples and their columns hypotheses.
        fixed: the hypotheses of `losses` were fixed before those samples were drawn; else nothing is a certificate.
        clean: the same losses before corruption; None: there was no corruption.
        s: batch size of ordered SGD.
        q: losses kept of each batch.
        delta: probability of failure.
        loss_range: M, the largest difference between two losses of one hypothesis; 1 for the 0-1 loss.
        draws: sign vectors for the Rademacher complexity of `losses`.
        seed: of all draws.
        warn: is told what looks odd about `losses`.

    Raises:
        ConditionError: a condition of the theorem is not met (the message says which), or `losses` are missing.
        DataError: a loss matrix cannot be read; the message names the file, the row and the column.
    """
    _check.integer("seed", seed, low=0)
    folder = Path(output)
    if losses is None:
        named = "clean goes with losses: give the corrupted loss matrix too"
        raise ConditionError("losses are missing: give a loss matrix" if clean is None else named)
    matrix = read_losses(Path(losses), transpose)
    before = None if clean is None else read_losses(Path(clean), transpose)
    try:
        table = terms_of_losses(
            matrix, before, s=s, q=q, delta=delta, loss_range=loss_range, draws=draws, seed=seed, fixed=fixed
        )
    except ValueError as error:
        raise ConditionError(str(error)) from error
    summary = summary_of_terms(table, delta=delta, fixed=fixed, corrupted=before is not None)
    for name, frame in (("terms", table), ("summary", summary)):
        _files.write_text(folder / f"{name}.csv", frame_text(frame))
    if warn is not None and (hint := turned_hint(*matrix.shape)):
        warn(hint)
    return {"terms": table, "summary": summary}
